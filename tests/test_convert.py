"""The verb: weights become a run that evaluates, asks and is started from, and a run becomes HF's weights again."""

import json
import subprocess
import sys

import hf_files as files
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from realm_jax import cli
from realm_jax.config import paper_config
from realm_jax.data.build import build_passages
from realm_jax.data.passages import PassageStore
from realm_jax.data.sample import SAMPLE_PASSAGES
from realm_jax.data.spans import RuleTagger
from realm_jax.data.vocabulary import SPECIAL_TOKENS, Vocabulary
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.index.snapshot import load
from realm_jax.training.checkpoint import Checkpoints
from realm_jax.training.start import abstract_params, initial_params
from realm_jax.weights.hf import read_hf

V, E, F, L, D, W = 70, 8, 10, 48, 4, 7
CONFIG = files.REALM_CONFIG | {
  "vocab_size": V, "hidden_size": E, "intermediate_size": F, "max_position_embeddings": L, "reader_seq_len": 40,
  "architectures": ["RealmForOpenQA"],
}  # fmt: skip
RUN_SIZES = {
  "hidden_size": E, "num_layers": 2, "num_heads": 2, "mlp_size": F, "max_length": L, "retrieval_size": D,
  "span_hidden_size": W, "max_span_width": 4,
}  # fmt: skip
VOCABULARY = Vocabulary(
  [*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *"0123456789.,'"],
  lowercase=True,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """20 passages in letters."""
  path = tmp_path_factory.mktemp("corpus") / "store"
  build_passages(SAMPLE_PASSAGES, path, vocabulary=VOCABULARY, passage_length=32, tagger=RuleTagger(), num_passages=20)
  return path


@pytest.fixture(scope="module")
def openqa(tmp_path_factory):
  """RealmForOpenQA with embeddings of as many passages."""
  sizes = dict(zip((files.V, files.E, files.F, files.L), (V, E, F, L)))
  resized = {
    name: tuple(sizes.get(length, length) for length in value.shape) if name != "block_emb" else (20, D)
    for name, value in files.open_qa().items()
  }
  tensors = files.random(5, resized)
  tensors["reader.cls.predictions.decoder.weight"] = tensors["reader.realm.embeddings.word_embeddings.weight"]
  return files.write(tmp_path_factory.mktemp("openqa") / "openqa", tensors, CONFIG, VOCABULARY)


@pytest.fixture
def convert(capsys):
  """Runs the verb: its exit status, and what it printed."""

  def run(source, output, *flags):
    capsys.readouterr()
    status = cli.run(["convert", f"--input={source}", f"--output={output}", *flags])
    printed = capsys.readouterr()
    return status, printed.out or printed.err

  return run


@pytest.fixture(scope="module")
def run(openqa, corpus, tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "run"
  assert cli.run(["convert", f"--input={openqa}", f"--output={path}", "--to=realm", f"--corpus={corpus}"]) == 0
  return path


def test_weights_become_a_run(openqa, corpus, run):
  config = RunDir(run).read_config()
  assert config["stage"] == "finetune" and config["corpus"] == str(corpus) and config["joint_length"] == 40
  assert config["model"] == paper_config("finetune").model.to_dict() | RUN_SIZES | {"towers_are_shared": True}
  step, params = restore_params(RunDir(run))
  weights = read_hf(openqa)
  assert step == 0 and tree_digest(params) == tree_digest(weights.tree())
  snapshot = load(RunDir(run), 1, PassageStore(corpus))
  expected = weights.block_emb.read(slice(None))
  np.testing.assert_array_equal(snapshot.passage_emb_ND, expected.astype(snapshot.passage_emb_ND.dtype))


def test_a_converted_run_evaluates_and_asks(run, tmp_path, capsys):
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question": "who discovered radium", "answer": ["marie curie"]}\n')
  assert cli.run(["evaluate", f"--workdir={run}", f"--questions={questions}"]) == 0
  result = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert result["num_questions"] == 1 and {"recall@20", "exact_match"} <= result.keys()
  assert cli.run(["ask", f"--workdir={run}", "--json", "who discovered radium"]) == 0
  answer = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert answer["passage"][answer["start"] : answer["end"]] == answer["text"] != ""
  assert cli.run(["refresh_index", f"--workdir={run}", "--once", "--quiet"]) == 0
  assert ", which is up to date" in capsys.readouterr().out  # its index is of these parameters


def test_training_starts_from_a_converted_run_but_does_not_resume_it(run, corpus, capsys):
  config = paper_config("finetune")
  config.model.update(RunDir(run).read_config()["model"])
  config.model.towers_are_shared = False
  config.init = str(run)
  params = initial_params(config, VOCABULARY)
  _, source = restore_params(RunDir(run))
  for tower in ("query_tower", "passage_tower"):
    assert tree_digest(params["retriever"][tower]) == tree_digest(source["retriever"]["query_tower"])
  assert tree_digest(params["reader"]) == tree_digest(source["reader"])

  with pytest.raises(ValueError, match=r"checkpoints/0 has no optimizer state: .* --config.init=.*/run, in another"):
    Checkpoints(RunDir(run), keep=1).restore(None)


def test_a_run_comes_back_to_the_bit(run, corpus, convert, tmp_path):
  assert convert(run, tmp_path / "hf", "--to=hf")[0] == 0
  status, out = convert(tmp_path / "hf", tmp_path / "again", "--to=realm", f"--corpus={corpus}")
  assert status == 0 and "with an index, whose row i is taken for passage i of the corpus" in out
  before, after = RunDir(run), RunDir(tmp_path / "again")
  assert tree_digest(restore_params(before)[1]) == tree_digest(restore_params(after)[1])
  store = PassageStore(corpus)
  np.testing.assert_array_equal(load(before, 1, store).passage_emb_ND, load(after, 1, store).passage_emb_ND)
  same = {"init": None}
  assert after.read_config() | same == before.read_config() | same


@pytest.mark.parametrize(
  ("stage", "classes"),
  [
    ("ict", ["RealmEmbedder"]),
    ("pretrain", ["RealmForOpenQA"]),
    ("finetune", ["RealmForOpenQA", "RealmEmbedder"]),  # the passage tower stands beside
  ],
)
def test_a_run_of_every_stage_comes_back_to_the_bit(corpus, convert, tmp_path, stage, classes):
  config = paper_config(stage)
  config.model.update(RUN_SIZES)
  config.corpus = str(corpus)
  rng = np.random.default_rng(4)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), abstract_params(config, V))
  if stage == "finetune":  # equal towers stay two
    params["retriever"]["passage_tower"] = params["retriever"]["query_tower"]
  run_dir = RunDir(tmp_path / "run")
  run_dir.write_config(config.to_dict())
  checkpoints = Checkpoints(run_dir, keep=1)
  checkpoints.save_params(7, params)
  checkpoints.close()
  status, out = convert(tmp_path / "run", tmp_path / "hf", "--to=hf")
  assert status == 0 and [line.split(": ")[1] for line in out.splitlines()[-len(classes) :]] == classes
  assert convert(tmp_path / "hf", tmp_path / "again", "--to=realm", f"--corpus={corpus}")[0] == 0
  again = RunDir(tmp_path / "again")
  assert tree_digest(restore_params(again)[1]) == tree_digest(params)
  assert again.read_config()["stage"] == stage
  expected = config.model.to_dict()
  if stage == "ict":  # without a reader, its sizes are nobody's
    expected |= {field: paper_config(stage).model[field] for field in ("span_hidden_size", "max_span_width")}
  assert again.read_config()["model"] == expected


def test_a_run_goes_to_another_corpus_without_its_index(run, corpus, convert, tmp_path):
  """Also to one of as many passages, the rows of which are others."""
  other = tmp_path / "store"
  build_passages(SAMPLE_PASSAGES, other, vocabulary=VOCABULARY, passage_length=31, tagger=RuleTagger(), num_passages=20)
  config = RunDir(run).read_config()
  for target, versions in (other, []), (corpus, [1]):
    assert convert(run, tmp_path / target.parent.name, "--to=realm", f"--corpus={target}")[0] == 0
    moved = RunDir(tmp_path / target.parent.name)
    assert moved.snapshot_versions() == versions
    expected = config | {"corpus": str(target), "init": None}
    assert moved.read_config() | {"init": None} == expected


def test_what_was_read_is_told(openqa, convert, tmp_path, monkeypatch):
  status, out = convert(openqa, tmp_path / "hf", "--to=hf")
  assert status == 0
  assert out.splitlines() == [
    f"read 91 tensors of {openqa}",
    "  retriever/query_tower: encoder, pooler, projection",
    "  reader: encoder, masked-word head, span head",
    "  block_emb: 20 passages",
    "unused: embedder.cls.predictions.bias and 5 more: a retriever predicts no words",
    "unused: reader.realm.pooler.dense.bias and 1 more: a reader pools nothing",
    f"{tmp_path / 'hf'}: RealmForOpenQA",
  ]


def test_embeddings_of_other_passages_are_left(openqa, tmp_path, convert):
  other = tmp_path / "store"
  build_passages(SAMPLE_PASSAGES, other, vocabulary=VOCABULARY, passage_length=32, tagger=RuleTagger(), num_passages=9)
  status, out = convert(openqa, tmp_path / "run", "--to=realm", f"--corpus={other}")
  assert status == 0
  assert "unused: block_emb: 20 embeddings are not of the corpus' 9 passages" in out
  assert f"without an index; make one with realm refresh_index --once --workdir={tmp_path / 'run'}\n" in out
  assert RunDir(tmp_path / "run").snapshot_versions() == []
  assert cli.run(["refresh_index", f"--workdir={tmp_path / 'run'}", "--once", "--quiet"]) == 0
  assert RunDir(tmp_path / "run").snapshot_versions() == [1]


@pytest.mark.parametrize(
  ("source", "flags", "message"),
  [
    ("openqa", ["--to=realm"], "a run belongs to a corpus: give --corpus"),
    ("bert", ["--to=realm", "--corpus=corpus"], "has no retriever, and without one there is no run; add"),
    ("nan", ["--to=realm", "--corpus=corpus"], "holds nan at [0]: its training has diverged"),
    ("nan", ["--to=hf"], "'embedder.cls.dense.bias' in "),
    ("other", ["--to=realm", "--corpus=corpus"], "has another vocabulary (70 wordpieces) than "),
    ("short", ["--to=realm", "--corpus=corpus"], "have up to 32 tokens, "),
    (
      "/nonexistent/at/all",
      ["--to=hf"],
      "/nonexistent/at/all holds no weights: neither a run's (checkpoints/)",
    ),
  ],
)
def test_a_refusal_leaves_nothing_behind(openqa, corpus, convert, tmp_path, source, flags, message):
  tensors = load_file(openqa / "model.safetensors")
  if source == "bert":
    files.write(tmp_path / "in", files.random(1, files.bert_shapes()), files.CONFIG)
  elif source == "nan":
    tensors["embedder.cls.dense.bias"] = np.full(D, np.nan, np.float32)
    files.write(tmp_path / "in", tensors, CONFIG, VOCABULARY)
  elif source == "other":
    files.write(
      tmp_path / "in", tensors, CONFIG, Vocabulary([*SPECIAL_TOKENS, *VOCABULARY.tokens[:4:-1]], lowercase=True)
    )
  elif source == "short":
    for name in tensors:
      if "position_embeddings" in name:
        tensors[name] = tensors[name][:30]
    files.write(tmp_path / "in", tensors, CONFIG | {"max_position_embeddings": 30}, VOCABULARY)
  path = {"openqa": openqa}.get(source, source if source.startswith("/") else tmp_path / "in")
  before = sorted(tmp_path.iterdir())
  status, out = convert(path, tmp_path / "out", *(flag.replace("=corpus", f"={corpus}") for flag in flags))
  assert status == 1 and message in out and out.startswith("realm convert: ")
  assert sorted(tmp_path.iterdir()) == before


def test_a_corpus_takes_the_vocabulary_and_casing_of_a_model(openqa, tmp_path):
  (tmp_path / "articles.jsonl").write_text('{"id": "1", "title": "Radium", "text": "Radium is a metal."}\n')
  files.write(tmp_path / "in", {}, None, Vocabulary([*VOCABULARY.tokens, "R", "##R"], lowercase=False))
  flags = [f"--input={tmp_path / 'articles.jsonl'}", "--passage_length=64", "--tagger=none"]
  assert cli.run(["build_corpus", *flags, f"--vocab={tmp_path / 'in'}", f"--output={tmp_path / 'cased'}"]) == 0
  vocabulary = PassageStore(tmp_path / "cased").vocabulary()
  assert (len(vocabulary), vocabulary.lowercase) == (V + 2, False)
  assert cli.run(["build_corpus", *flags, f"--vocab={tmp_path}", f"--output={tmp_path / 'none'}"]) == 1
  assert not (tmp_path / "none").exists()


def test_an_output_that_exists_is_refused(openqa, convert, tmp_path):
  assert convert(openqa, tmp_path, "--to=hf")[1].startswith(
    f"realm convert: {tmp_path} exists; choose another --output"
  )


MEASURE = """
import sys
import numpy as np
from realm_jax import cli, convert  # what is loaded before is not counted
from realm_jax.weights import hf_export, source

def resident(kind):
  with open("/proc/self/status") as file:
    return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind))

before = resident("VmRSS")
assert cli.run(["convert", *sys.argv[1:]]) == 0
print(resident("VmHWM") - before)
"""


def growth(*arguments):
  """Bytes by which the conversion's process grew at its height."""
  command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
  result = subprocess.run(command, capture_output=True, text=True, check=True)
  return int(result.stdout.splitlines()[-1])


def test_memory_holds_one_tensor_at_a_time(tmp_path):
  """60 MB in tensors of 4 MB: the whole would be seen."""
  shapes = {name: tuple(1024 if length in (files.E, files.F) else length for length in shape)
            for name, shape in files.bert_shapes().items()}  # fmt: skip
  config = files.CONFIG | {"hidden_size": 1024, "intermediate_size": 1024}
  files.write(tmp_path / "in", files.random(1, shapes), config)
  size = (tmp_path / "in" / "model.safetensors").stat().st_size
  assert size > 50e6
  grown = growth(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--to=hf")
  assert grown < 0.5 * size
  assert read_hf(tmp_path / "out").tensors.keys() == read_hf(tmp_path / "in").tensors.keys()


@pytest.mark.slow
def test_bert_base_converts_within_its_size(tmp_path):
  """440 MB."""
  sizes = dict(zip((files.V, files.E, files.F, files.L), (30_522, 768, 3072, 512)))
  shapes = {
    name.replace("layer.0", f"layer.{n}"): tuple(sizes.get(length, length) for length in shape)
    for name, shape in files.bert_shapes().items()
    for n in range(12 if "layer.0" in name else 1)
    if "layer.1" not in name
  }
  config = files.CONFIG | {
    "vocab_size": 30_522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512,
  }  # fmt: skip
  files.write(tmp_path / "in", files.random(1, shapes), config, None)
  size = (tmp_path / "in" / "model.safetensors").stat().st_size
  assert 430e6 < size < 450e6
  grown = growth(f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--to=hf")
  print(f"\n{grown / 1e6:.0f} MB for a file of {size / 1e6:.0f} MB")
  assert grown < 1.3 * size
