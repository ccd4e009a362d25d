"""MediaWiki dumps: articles only, sentences only, and damage is named."""

import bz2

import pytest

from realm_jax.data.articles import Article, Rejections
from realm_jax.data.shards import cut_shards
from realm_jax.data.sources import Source, read_articles

pytest.importorskip("mwparserfromhell", reason="mwparserfromhell is not installed (extra wiki)")
from realm_jax.data.formats_dump import plain_text  # noqa: E402

HEAD = '<mediawiki xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" version="0.11" xml:lang="en">\n  <siteinfo/>\n'


def page(id_, title, text, *, ns=0, extra="", model="wikitext") -> str:
  return (
    f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>{id_}</id>\n{extra}    <revision>\n"
    f"      <id>99{id_}</id>\n      <model>{model}</model>\n"
    f'      <text bytes="9" xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
  )


def read(path, content: str, rejections=None):
  path.write_bytes(bz2.compress(content.encode()))
  return list(read_articles([str(path)], rejections=rejections or Rejections("page")))


def test_takes_articles_only(tmp_path):
  pages = [
    page(12, "A &amp; B", "'''A''' is a [[letter|sign]].&lt;ref&gt;note&lt;/ref&gt;"),
    page(13, "C", "#REDIRECT [[A]]", extra='    <redirect title="A &amp; B" />\n'),
    page(14, "Talk:A", "Hello.", ns=1),
    page(15, "M", "{}", model="json"),
    page(16, "Empty", ""),
    page(17, "T", "{{template}}"),
    page(18, "Z", "Last\nwith &amp;nbsp;space."),
  ]
  articles = read(tmp_path / "x.xml.bz2", HEAD + "".join(pages) + "</mediawiki>\n")
  assert articles == [Article("12", "A & B", "A is a sign."), Article("18", "Z", "Last\nwith space.")]


def test_bad_pages_are_counted_and_spoil_no_other(tmp_path):
  pages = [
    page(1, "A", "One."),
    page(2, "B", "Two <b> &unknown; three."),
    "  <page>\n    <title>cut off\n",
    page(3, "C", "Three."),
    page(4, "D", "Four.").replace("<id>4</id>", ""),
    page(5, "E", "5 \x01"),
  ]
  rejections = Rejections("page")
  articles = read(tmp_path / "x.xml.bz2", HEAD + "".join(pages) + "</mediawiki>", rejections)
  assert [a.id for a in articles] == ["1", "3"]
  assert rejections.count == {"XML that isn't well-formed": 3, 'no "id" or no "text"': 1}
  assert rejections.places("XML that isn't well-formed") == ["2", "3", "6"]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (HEAD + page(1, "A", "One."), "x.xml.bz2 ends after page 1 without </mediawiki>; it is cut off"),
    ("<html>\n<page>\n", "x.xml.bz2 is no XML dump of MediaWiki: it begins with b'<html>"),
    ("", "x.xml.bz2 ends after page 0 without </mediawiki>"),
  ],
)
def test_what_is_no_whole_dump_is_refused(tmp_path, content, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path / "x.xml.bz2", content)


def test_pages_are_cut_into_shards(tmp_path):
  (tmp_path / "x.xml").write_text(HEAD + "".join(page(i, f"T{i}", "Text.") for i in range(5)) + "</mediawiki>\n")
  shards = list(cut_shards(0, Source(str(tmp_path / "x.xml"), "dump"), shard_bytes=400))
  assert [[r.number for r in shard.records] for shard in shards] == [[1, 2], [3, 4], [5]]
  assert len({shard.name for shard in shards}) == 3


@pytest.mark.parametrize(
  ("wikitext", "text"),
  [
    ("'''Bold''' and ''italic''.", "Bold and italic."),
    ("{{Infobox|x=1|y={{z}}}}A [[town]] in [[France|the north]].", "A town in the north."),
    ("See [http://x.org the site] or [http://x.org] or <nowiki>[[x]]</nowiki>.", "See the site or or [[x]]."),
    ("[[File:a.jpg|thumb|A [[cat]].]]Text.[[Category:Cats]]", "Text."),
    ("Text.<ref name=a>Note.</ref><ref name=b/> More.<!-- hidden -->", "Text. More."),
    ("Before.\n{| class=x\n! h\n|-\n| cell || c2\n|}\nAfter.", "Before.\nAfter."),
    ("Intro.\n== History ==\nOld.\n=== Early ===\nOlder.\n== See also ==\n* [[X]]\n=== sub ===\ny.\n== Later ==\nNew.",
     "Intro.\nOld.\nOlder.\nNew."),
    ("Paris ({{IPA|x}}; {{lang|fr}}) is big.__NOTOC__", "Paris is big."),
    ("One<br />two &ndash; H<sub>2</sub>O.", "One\ntwo – H2O."),
    ("* first\n* second\n----\n", "first\nsecond"),
    ("<math>x^2</math>", ""),
  ],
)  # fmt: skip
def test_plain_text(wikitext, text):
  assert plain_text(wikitext) == text


@pytest.mark.parametrize("piece", ["{{a|", "[[a|", "<b>", "'''''"])
def test_deep_nesting_that_is_never_closed_is_text(piece):
  assert plain_text(f"before {piece * 300}") == f"before {piece * 300}"


def test_deep_tables_are_no_crash():
  assert plain_text("before " + "{|\n|" * 300) == "before {|"
