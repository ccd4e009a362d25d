"""The cache of a tagger: what was found once isn't looked for again."""

import pytest

from realm_jax.data.spans import KINDS, Span
from realm_jax.data.tag_cache import CachedTagger

TEXTS = ["Ada met Bob.", "", "No one."]


class CountingTagger:
  """Calls the first three characters a person."""

  def __init__(self, name="counting-1"):
    self.name, self.calls = name, 0

  def tag(self, texts):
    self.calls += 1
    return [[Span(0, 3, "person"), Span(8, 11, "misc")] if t.startswith("Ada") else [] for t in texts]


@pytest.fixture
def tagger():
  return CountingTagger()


def test_tags_once(tmp_path, tagger):
  expected = tagger.tag(TEXTS)
  for n in range(3):
    cached = CachedTagger(tagger, str(tmp_path / "cache"))  # a new process
    assert (cached.tag(TEXTS), cached.name) == (expected, "counting-1")
    assert tagger.calls == 2, n
  assert {type(span) for spans in cached.tag(TEXTS) for span in spans} == {Span}
  assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]


def test_other_texts_and_taggers_have_their_own(tmp_path, tagger):
  cached = CachedTagger(tagger, str(tmp_path))
  for n, texts in enumerate([TEXTS, TEXTS[:2], TEXTS[::-1], ["Ada met ", "Bob."], []], 1):
    cached.tag(texts)
    assert tagger.calls == n
  other = CountingTagger("counting-2")
  CachedTagger(other, str(tmp_path)).tag(TEXTS)
  assert other.calls == 1
  assert KINDS[-1] == "misc"


def test_a_damaged_file_is_as_good_as_none(tmp_path, tagger):
  cached = CachedTagger(tagger, str(tmp_path))
  expected = cached.tag(TEXTS)
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  for damaged in (whole[:-9], b"", whole[:60] + b"\xff" * 9 + whole[69:]):
    path.write_bytes(damaged)
    calls = tagger.calls
    assert cached.tag(TEXTS) == expected
    assert tagger.calls == calls + 1
    assert path.read_bytes() == whole
