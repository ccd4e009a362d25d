"""Apache Beam's direct runner builds the same store as this process."""

import builtins
import json

import pytest

from realm_jax.data.build import Runner, build_passages
from realm_jax.data.spans import RuleTagger
from realm_jax.data.vocabulary import Vocabulary

TEXT = "The cat was born in 18{n:02d}. Ada met dog number {n}."


@pytest.fixture
def inputs(tmp_path):
  for name, numbers in (("b.jsonl", range(20)), ("a.jsonl", range(20, 30))):
    lines = [json.dumps({"id": n, "title": f"Cat {n}", "text": TEXT.format(n=n)}) for n in numbers]
    (tmp_path / name).write_text("\n".join([*lines, "{"]) + "\n")
  return [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]


def test_the_same_store(inputs, tmp_path):
  pytest.importorskip("apache_beam", reason="Apache Beam is not installed (extra beam)")
  vocabulary = Vocabulary.train([TEXT], size=60, lowercase=True)
  results = [
    build_passages(
      inputs, tmp_path / name, vocabulary=vocabulary, passage_length=32, tagger=RuleTagger(), shard_bytes=300,
      runner=runner,
    )
    for name, runner in (
      ("here", Runner()),
      ("beam", Runner("DirectRunner", beam_options=("--direct_num_workers=1",), shards_dir=str(tmp_path / "shards"))),
    )
  ]  # fmt: skip
  assert results[0] == results[1]
  assert results[0]["rejected_records"] == (
    f"2 with no valid JSON (lines {tmp_path}/b.jsonl:21, {tmp_path}/a.jsonl:11)"
  )
  here, beam = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("here", "beam"))
  assert here == beam
  assert list((tmp_path / "shards").iterdir()) == []


def test_missing_beam_names_the_remedy(inputs, tmp_path, monkeypatch):
  real_import = builtins.__import__

  def import_without_beam(name, *args, **kwargs):
    if name.startswith("apache_beam"):
      raise ImportError("No module named 'apache_beam'")
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", import_without_beam)
  vocabulary = Vocabulary.train([TEXT], size=60, lowercase=True)
  with pytest.raises(ImportError, match=r'needs Apache Beam; run: pip install "realm_jax\[beam\]"'):
    build_passages(
      inputs, tmp_path / "out", vocabulary=vocabulary, passage_length=32, tagger=RuleTagger(),
      runner=Runner("DirectRunner"),
    )  # fmt: skip
  assert not (tmp_path / ".out.writing").exists()
