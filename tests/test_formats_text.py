"""Plain text and Markdown: titles, paragraphs, ids, and files that are no text."""

import gzip

import pytest

from realm_jax.data.articles import Article, Rejections
from realm_jax.data.sources import read_articles


@pytest.mark.parametrize(
  ("name", "content", "title", "text"),
  [
    ("moon.txt", "The Moon\nis far.\n\nVery far.\n", "moon", "The Moon is far.\nVery far."),
    ("apollo_11-notes.txt", "One.", "apollo 11 notes", "One."),
    ("a.md", "# The Moon\nIt is far.", "The Moon", "It is far."),
    ("a.md", "\n\n  ## The   Moon ##\r\n\r\nIt is\r\nfar.\r\n", "The Moon", "It is far."),
    (
      "a.md",
      "# C#\nA language.\n## Its age\nOld.\n###### See also #\nB.",
      "C#",
      "A language.\nIts age\nOld.\nSee also\nB.",
    ),
    ("a.md", "#hashtag is no heading", "a", "#hashtag is no heading"),
    ("a.md", "\ufeff# Café\n \t\nשלום", "Café", "שלום"),
    ("v1.2.txt", "One.", "v1.2", "One."),
  ],
)
def test_a_file_is_an_article(tmp_path, name, content, title, text):
  path = tmp_path / name
  path.write_bytes(content.encode())
  assert list(read_articles([str(path)], rejections=Rejections())) == [Article(str(path), title, text)]


def test_a_directory_of_notes(tmp_path, monkeypatch):
  """Ids are paths as they were given, so that the same name may come twice; a bad file is counted under its reason."""
  monkeypatch.chdir(tmp_path)
  for path, content in {
      "notes/a/x.txt": b"One.", "notes/b/x.txt": b"Two.", "notes/b/y.md.gz": gzip.compress(b"# Y\nThree."),
      "notes/bad.txt": b"caf\xe9", "notes/binary.txt": b"a\0b", "notes/empty.md": b"# Only a title\n",
      "notes/long.txt": b"a " * (9 * 2**20), "notes/.trash/z.txt": b"Four.",
  }.items():  # fmt: skip
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(content)
  rejections = Rejections("file")
  found = list(read_articles(["notes"], rejections=rejections))
  assert found == [
    Article("notes/a/x.txt", "x", "One."),
    Article("notes/b/x.txt", "x", "Two."),
    Article("notes/b/y.md.gz", "Y", "Three."),
  ]
  assert dict(rejections.count) == {
    "bytes that are not UTF-8": 1,
    "control characters, so no text": 1,
    'an empty "text"': 1,
    "more than 16 MiB": 1,
  }
  (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"One. " * 1000)[:-20])
  with pytest.raises(ValueError, match="cut.txt.gz can't be decompressed from its beginning .*; is it cut off"):
    list(read_articles(["cut.txt.gz"], rejections=rejections))
