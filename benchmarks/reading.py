"""Measures what a reader gets from passages: python benchmarks/reading.py --retriever=runs/ict --reader=runs/mlm

For masked sentences and the passages that the retriever, BM25 and chance find: how often they hold the masked words,
and how much likelier they make them than the null passage does, in nats.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from realm_jax.config import make_reader, stored_config
from realm_jax.data.mixing import masked_sentences
from realm_jax.data.passages import PassageStore
from realm_jax.index.bm25 import Bm25
from realm_jax.index.params import restore_params
from realm_jax.index.retrieve import BatchAssembler, choose_passages
from realm_jax.index.run_dir import RunDir
from realm_jax.serving.open_qa import OpenQA

_BATCH = 64
_SEED = 777  # other sentences of the same passages than training draws first


class Reading(NamedTuple):
  """For B queries, K - 1 passages and M masked words."""

  gain_BKM: np.ndarray  # log p(word | passage) - log p(word | null passage)
  is_held_BKM: np.ndarray  # whether the passage holds the word
  weight_BM: np.ndarray

  def describe(self) -> str:
    weight = np.broadcast_to(self.weight_BM[:, None], self.gain_BKM.shape)
    held, others = weight * self.is_held_BKM, weight * ~self.is_held_BKM
    # Every passage and the null one with the same prior, as a retriever that knows nothing would have it.
    utility_BM = np.log((1 + np.exp(self.gain_BKM).sum(1)) / (1 + self.gain_BKM.shape[1]))
    columns = [
      (self.is_held_BKM.any(1) * self.weight_BM).sum() / self.weight_BM.sum(),
      (self.gain_BKM * held).sum() / held.sum(),
      (self.gain_BKM * others).sum() / others.sum(),
      (utility_BM * self.weight_BM).sum() / self.weight_BM.sum(),
    ]
    return f"{100 * columns[0]:10.1f}" + "".join(f"{value:14.3f}" for value in columns[1:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--retriever", required=True, help="a run with an index, such as an ICT run")
  parser.add_argument("--reader", required=True, help="a run with a reader")
  parser.add_argument("--num", type=int, default=512, help="sentences")
  parser.add_argument("--passages", type=int, default=3, help="read for each")
  parser.add_argument("--mixture", default="", help="where the sentences come from, as config.mixture [the corpus]")
  flags = parser.parse_args()
  run_dir, reader_dir = RunDir(flags.retriever), RunDir(flags.reader)
  config, reader_config = stored_config(run_dir.read_config()), stored_config(reader_dir.read_config())
  store = PassageStore(config.corpus)
  vocabulary = store.vocabulary()
  num = flags.num // _BATCH * _BATCH
  settings = {"query_length": reader_config.query_length, "max_masks": reader_config.max_masks}
  sentences = masked_sentences(store, masking="salient_span", mixture=flags.mixture, seed=_SEED, **settings)
  queries = sentences.draw(np.arange(num))
  k = flags.passages + 1  # one may be the sentence's own
  found = {
    "retriever": OpenQA.load(flags.retriever).search(queries, k)[1],
    "BM25": Bm25(store).retrieve(_texts(queries, vocabulary), k)[1],
    "chance": np.random.default_rng(0).integers(0, len(store), (num, k)),
  }
  reader = make_reader(reader_config.model, len(vocabulary))
  params = restore_params(reader_dir)[1]["reader"]
  print(f"{num} sentences, {flags.passages} passages each; gains in nats a masked word")
  print("               held, %  gain if held  gain if not  utility, uniform prior")
  for name, passage_id_BR in found.items():
    passage_id_BK = choose_passages(passage_id_BR, queries.passage_id_B, k)
    assembler = BatchAssembler(store, vocabulary, joint_length=reader_config.joint_length)
    print(f"{name:>12}{_read(reader, params, assembler, store, queries, passage_id_BK).describe()}")


def _texts(queries, vocabulary) -> list[str]:
  """The sentences as words, the masks left out."""
  rows = zip(queries.token_id_BQ, queries.num_tokens_B)
  words = ([vocabulary.tokens[i] for i in row[1 : n - 1] if i != vocabulary.mask_id] for row, n in rows)
  return [" ".join(w).replace(" ##", "") for w in words]


def _read(reader, params, assembler: BatchAssembler, store: PassageStore, queries, passage_id_BK) -> Reading:
  joint = assembler.joint_input(queries, passage_id_BK)
  k = passage_id_BK.shape[1]

  @jax.jit
  def gold_log_prob(joint, position, target):
    log_prob = reader.apply({"params": params}, joint, position, method="masked_word_log_prob")
    return jnp.take_along_axis(log_prob, target[..., None], -1)[..., 0]

  parts = []
  for begin in range(0, len(passage_id_BK), _BATCH):
    rows = slice(begin, begin + _BATCH)
    position, target = (np.repeat(x[rows, None], k, 1) for x in (queries.mask_position_BM, queries.mask_target_BM))
    parts.append(np.asarray(gold_log_prob(jax.tree.map(lambda x, rows=rows: x[rows], joint), position, target)))
  log_prob_BKM = np.concatenate(parts)
  body = store.body_tokens(passage_id_BK[:, 1:].reshape(-1))
  place = np.arange(body.token_id_RL.shape[1])
  is_body = (place >= body.start_R[:, None]) & (place < (body.start_R + body.num_tokens_R)[:, None])
  target_RM = np.repeat(queries.mask_target_BM, k - 1, 0)
  is_held = ((body.token_id_RL[:, :, None] == target_RM[:, None]) & is_body[:, :, None]).any(1)
  return Reading(
    log_prob_BKM[:, 1:] - log_prob_BKM[:, :1],
    is_held.reshape(len(passage_id_BK), k - 1, -1),
    queries.mask_weight_BM,
  )


if __name__ == "__main__":
  main()
