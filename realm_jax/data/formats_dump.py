"""Reads MediaWiki's XML dumps (pages-articles.xml.bz2): articles of the main namespace as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from realm_jax.data.articles import (
  MAX_RECORD_BYTES,
  TOO_LONG,
  Article,
  BadRecord,
  LeftOut,
  file_size,
  make_article,
  placed_lines,
)
from realm_jax.data.formats import Format, Record


def _read(path: str) -> Iterator[Record]:
  """Finds the pages by the lines <page> and </page>, as every dump has them, so that a bad page spoils no other."""
  number, position, is_whole = 0, 0, False
  lines: list[bytes] = []
  size = 0
  for line_number, line, position in placed_lines(path):
    mark = line.strip()
    if line_number == 1 and not mark.startswith((b"<mediawiki", b"<?xml")):
      raise ValueError(f"{path} is no XML dump of MediaWiki: it begins with {line[:40]!r} instead of <mediawiki")
    if mark == b"<page>":
      if lines:  # the page before has no end
        yield Record(number, b"", position, "XML that isn't well-formed")
      number, size, lines = number + 1, 0, []
    elif not lines:
      is_whole = is_whole or mark == b"</mediawiki>"
      continue
    size += len(line)
    if size <= MAX_RECORD_BYTES:
      lines.append(line)
    if mark == b"</page>":
      data = b"".join(lines)
      yield Record(number, data, position) if size == len(data) else Record(number, b"", position, TOO_LONG)
      lines = []
  if not is_whole:
    raise ValueError(f"{path} ends after page {number} without </mediawiki>; it is cut off, fetch it again")


def _parse(data: bytes) -> Article:
  try:
    page = ElementTree.fromstring(data)
  except (ElementTree.ParseError, ValueError):
    raise BadRecord("XML that isn't well-formed") from None
  namespace = page.findtext("ns", "0").strip()
  if namespace != "0":
    raise LeftOut("a namespace other than that of articles")
  if page.find("redirect") is not None:
    raise LeftOut("a redirect")
  revision = page.find("revision")
  if page.find("id") is None or revision is None or revision.find("text") is None:
    raise BadRecord('no "id" or no "text"')
  if revision.findtext("model", "wikitext").strip() != "wikitext":
    raise LeftOut("a content model other than wikitext")
  wikitext = revision.findtext("text") or ""
  if not wikitext.strip():
    raise LeftOut("a page without text")
  text = plain_text(wikitext)
  if not text:
    raise LeftOut("a page without sentences")
  return make_article({"id": page.findtext("id"), "title": page.findtext("title", ""), "text": text})


# Sections of lists and links.
_NO_PROSE = re.compile(
  r"(?i)see also|references|notes|footnotes|citations|bibliography|sources|further reading|external links"
)
_NO_TEXT_TAGS = frozenset(
  "ref references table gallery math timeline imagemap score syntaxhighlight source pre code".split()
)
_NO_TEXT_LINK = re.compile(r"(?i)\s*(?:file|image|media|category)\s*:")
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"[ \xa0]?\((?:\s|[,;:])*\)")
_SPACE = re.compile(r"[ \t\xa0]+")


def plain_text(wikitext: str) -> str:
  """The sentences of an article, a paragraph a line, without tables, templates, notes, pictures and headings.

  Raises:
    BadRecord: markup that can't be parsed.
  """
  try:
    import mwparserfromhell  # noqa: PLC0415 an extra
    from mwparserfromhell import nodes  # noqa: PLC0415
  except ImportError as error:
    raise ImportError('an XML dump needs a parser of wikitext; run: pip install "realm_jax[wiki]"') from error
  try:
    wikicode = mwparserfromhell.parse(wikitext)
    kept, is_prose, level = [], True, 0
    for node in wikicode.nodes:
      if isinstance(node, nodes.Heading):
        if is_prose or node.level <= level:
          is_prose, level = not _NO_PROSE.fullmatch(str(node.title).strip()), node.level
        kept.append("\n")
      elif is_prose:
        kept.append(_strip(node, nodes))
  except (RecursionError, ValueError, mwparserfromhell.parser.ParserError):
    raise BadRecord("wikitext that can't be parsed") from None
  lines = (_tidy(line) for line in "".join(kept).split("\n"))
  return "\n".join(line for line in lines if any(c.isalnum() for c in line))


def _strip(node, nodes) -> str:
  """The visible text of one node of the parse tree."""
  if isinstance(node, nodes.Tag):
    name = str(node.tag).strip().lower()
    if name in _NO_TEXT_TAGS:
      return ""
    if name in ("br", "hr"):
      return "\n"
    return _strip_all(node.contents, nodes) if node.contents else ""
  if isinstance(node, nodes.Wikilink):
    if _NO_TEXT_LINK.match(str(node.title)):
      return ""
    return _strip_all(node.text if node.text is not None else node.title, nodes).removeprefix(":")
  if isinstance(node, nodes.ExternalLink):
    return _strip_all(node.title, nodes) if node.title else ""
  if isinstance(node, nodes.HTMLEntity):
    return node.normalize()
  return str(node) if isinstance(node, nodes.Text) else ""


def _strip_all(wikicode, nodes) -> str:
  return "".join(_strip(node, nodes) for node in wikicode.nodes)


def _tidy(line: str) -> str:
  line = _EMPTY_BRACKETS.sub("", _MAGIC_WORD.sub("", line))
  return _SPACE.sub(" ", line).replace(" ,", ",").replace(" .", ".").strip()


DUMP = Format("page", _read, _parse, file_size, is_wikipedia=True)
