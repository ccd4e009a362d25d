"""Measures what the retriever's gradient points at: python benchmarks/gradients.py --config=configs/table2.py:realm ...

For the retriever of one run and the reader of another, before a step is taken: how many sentences a batch needs until
the mean gradient of pre-training stands out of its noise, and whether it points where questions want it to. Run it with
--help for the flags; fields of the config are set as in realm train.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl import app, flags, logging
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict, config_flags

from realm_jax.batch import IctBatch
from realm_jax.config import make_retriever, stored_config
from realm_jax.data.answers import has_answer
from realm_jax.data.passages import PassageStore
from realm_jax.data.queries import QuestionSource
from realm_jax.data.questions import read_questions
from realm_jax.index.bm25 import Bm25
from realm_jax.index.params import restore_params
from realm_jax.index.retrieve import BatchAssembler
from realm_jax.index.run_dir import RunDir
from realm_jax.model.losses import ict_loss
from realm_jax.model.retriever import Retriever
from realm_jax.serving.open_qa import OpenQA
from realm_jax.training.stages import make_stage

_FIRST = 10_000_000  # other sentences than training draws first
_QUESTIONS = 64  # in a batch
_TOP = 20  # BM25's passages that a question's right one is looked for in
_TEMPERATURES = (0.1, 100.0)


class Mean(NamedTuple):
  """Of many batches' gradients, flat, [P]."""

  mean: jax.Array
  half: tuple[jax.Array, jax.Array]  # means of every other one
  variance: jax.Array  # of the mean
  num: int

  def only(self, is_part: jax.Array) -> Mean:
    return jax.tree.map(lambda x: x * is_part if isinstance(x, jax.Array) else x, self)

  def squared_norm(self) -> float:
    """Of the expected gradient: the mean's, less what its noise adds."""
    return float(self.mean @ self.mean - self.variance.sum())

  def noise_scale(self, batch_size: int) -> float:
    """Examples of a batch whose gradient is as much noise as signal: B_simple of McCandlish et al. 2018, section 2.

    Infinite where no signal stands out of the noise of all batches together.
    """
    signal = self.squared_norm()
    return batch_size * self.num * float(self.variance.sum()) / signal if signal > 0 else math.inf


def mean_of(gradients: Iterable[jax.Array]) -> Mean:
  total, squares, num = [0.0, 0.0], 0.0, 0
  for gradient in gradients:
    total[num % 2] += gradient
    squares += gradient**2
    num += 1
  mean = (total[0] + total[1]) / num
  halves = total[0] / ((num + 1) // 2), total[1] / (num // 2)
  return Mean(mean, halves, (squares / num - mean**2) / (num - 1), num)


def question_batches(questions_path: str, store: PassageStore, config: ConfigDict) -> Iterator[IctBatch]:
  """Questions, each with BM25's first passage that holds an answer."""
  vocabulary = store.vocabulary()
  questions = read_questions(questions_path).questions
  passage_id_BK = Bm25(store).retrieve([q.question for q in questions], _TOP)[1].tolist()
  right = {
    question: next((i for i in row if has_answer(store.body(i), question.answers)), None)
    for question, row in zip(questions, passage_id_BK)
  }
  kept = [q for q in right if right[q] is not None]
  right_id = np.array([right[q] for q in kept], np.int32)
  source = QuestionSource(kept, vocabulary, seed=0, query_length=config.query_length, max_masks=config.max_masks)
  assembler = BatchAssembler(store, vocabulary, joint_length=config.joint_length)
  for begin in range(0, len(kept) - _QUESTIONS + 1, _QUESTIONS):
    queries = source.draw(np.arange(begin, begin + _QUESTIONS))
    nothing_removed = np.zeros(_QUESTIONS, bool)
    yield assembler.ict_batch(
      queries._replace(passage_id_B=right_id[queries.question_id_B], sentence_is_removed_B=nothing_removed)
    )


def question_loss(retriever: Retriever, params: Any, batch: IctBatch, temperature: jax.Array) -> jax.Array:
  """Each question's passage among those of the batch."""
  embed = functools.partial(retriever.apply, {"params": params})
  query_emb_BD = embed(batch.query_BQ, method="embed_queries")
  return ict_loss(query_emb_BD / temperature, embed(batch.passage_BKP, method="embed_passages"))[0]


def question_gradient(retriever: Retriever, params: Any, batches: list[IctBatch]) -> Mean:
  """At the temperature with the least loss. At any other most of the gradient makes all embeddings longer or shorter,
  which ranks don't see."""
  loss = jax.jit(functools.partial(question_loss, retriever))

  def mean_loss(log_temperature: float) -> float:
    return float(np.mean([loss(params, batch, math.exp(log_temperature)) for batch in batches]))

  best = scipy.optimize.minimize_scalar(mean_loss, bounds=np.log(_TEMPERATURES), method="bounded")
  print(f"{len(batches) * _QUESTIONS} questions: loss {best.fun:.3f} nats at temperature {math.exp(best.x):.2f}")
  gradient = jax.jit(jax.grad(functools.partial(question_loss, retriever)))
  return mean_of(ravel_pytree(gradient(params, batch, math.exp(best.x)))[0] for batch in batches)


def is_word_embedding(params: Any) -> jax.Array:
  tree = jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.full_like(x, any(key.key == "word_embeddings" for key in path)), params
  )
  return ravel_pytree(tree)[0]


def cosine(a: jax.Array, b: jax.Array) -> float:
  return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def define_flags() -> None:
  config_flags.DEFINE_config_file("config", None, "Of pre-training; its corpus is the retriever's.")
  flags.DEFINE_string("retriever", None, "A run with an index.", required=True)
  flags.DEFINE_string("reader", None, "A run with a reader.", required=True)
  flags.DEFINE_string("questions", None, "A file of questions with answers.", required=True)
  flags.DEFINE_integer("num_batches", 48, "Of config.batch_size sentences each.", 2)


def main(argv: list[str]) -> None:
  values = flags.FLAGS
  if len(argv) > 1 or values.config is None:
    raise app.UsageError("give --config=FILE.py and the other flags, and nothing else")
  logging.set_verbosity(logging.ERROR)  # Orbax tells of each file that it reads
  config, run_dir = values.config, RunDir(values.retriever)
  config.corpus = stored_config(run_dir.read_config()).corpus
  store = PassageStore(config.corpus)
  vocabulary = store.vocabulary()
  stage = make_stage(config, store, vocabulary)
  index = OpenQA.load(values.retriever).snapshot
  sources = {"retriever": run_dir, "reader": RunDir(values.reader)}
  params = jax.device_put({name: restore_params(source)[1][name] for name, source in sources.items()})

  @jax.jit
  def gradient(params, batch):
    def loss(retriever_params):
      return stage.objective({**params, "retriever": retriever_params}, batch, jax.random.key(0))[0]

    return ravel_pytree(jax.grad(loss)(params["retriever"]))[0]

  def gradients() -> Iterator[jax.Array]:
    for i in range(values.num_batches):
      queries = stage.source.draw(np.arange(i * config.batch_size, (i + 1) * config.batch_size) + _FIRST)
      yield gradient(params, stage.make_batch(queries, params, index))

  pretraining = mean_of(gradients())
  retriever = make_retriever(config.model, len(vocabulary))
  asked = question_gradient(retriever, params["retriever"], list(question_batches(values.questions, store, config)))
  is_word = is_word_embedding(params["retriever"])
  print(f"{values.num_batches * config.batch_size} sentences")
  print("                    noise scale, sentences   cosine with the questions' gradient (of either half)")
  for name, is_part in (("word embeddings", is_word), ("all others", 1 - is_word)):
    part, asked_part = pretraining.only(is_part), asked.only(is_part)
    whole, *halves = (f"{cosine(mean, asked_part.mean):.3f}" for mean in (part.mean, *part.half))
    print(f"{name:>18}{part.noise_scale(config.batch_size):26,.0f}   {whole} ({', '.join(halves)})")


if __name__ == "__main__":
  define_flags()
  app.run(main)
