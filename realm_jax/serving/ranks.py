"""Which passages a question finds, with ranks and scores now and before, and where the gradient moves them."""

from __future__ import annotations

from typing import NamedTuple

from realm_jax.batch import NULL_PASSAGE, QueryBatch
from realm_jax.config import stored_config
from realm_jax.data.passages import PassageStore
from realm_jax.index import snapshot as snapshots
from realm_jax.index.digest import tree_digest
from realm_jax.index.params import restore_params
from realm_jax.index.run_dir import RunDir
from realm_jax.model.retriever import passage_tower_params
from realm_jax.serving.directions import make_query, score_gradients
from realm_jax.serving.open_qa import OpenQA

DEPTH = 1000  # ranks beyond it are not looked for


class Place(NamedTuple):
  """A passage that one of two retrievers has among its k best, or that is read: its rank, from 1, and score in each.

  None: not among the DEPTH best, or nothing to compare with.
  """

  passage_id: str | None  # None: the null passage
  title: str
  rank: int | None
  score: float | None
  rank_before: int | None
  score_before: float | None
  gradient: float | None = None  # of the answer's log-likelihood by the score; None: not read, or no answer given


def load_before(workdir, before: str | None) -> OpenQA | None:
  """What to compare a run with: another run, or a step of this one, with the snapshot of that step's passage tower.

  Raises:
    FileNotFoundError: no such run or checkpoint, or no such snapshot any more.
  """
  if before is None:
    return None
  if not before.isdigit():
    return OpenQA.load(before)
  run_dir = RunDir(workdir)
  config = stored_config(run_dir.read_config())
  step, params = restore_params(run_dir, int(before))
  store, digest = PassageStore(config.corpus), tree_digest(passage_tower_params(params["retriever"]))
  steps = []
  for version in run_dir.snapshot_versions():
    manifest = snapshots.read_manifest(run_dir, version)
    if manifest["params_digest"] == digest:
      return OpenQA(config, store, store.vocabulary(), params, snapshots.load(run_dir, version, store))
    steps.append(manifest["params_step"])
  raise FileNotFoundError(
    f"no snapshot in {run_dir.index} has the passages as step {step} embeds them (there are those of the steps "
    f"{steps}); give another step or a run as --before, or train with a larger --config.index.keep"
  )


def compare(question: str, now: OpenQA, before: OpenQA | None, *, k: int, answer: str | None = None) -> list[Place]:
  """The k best passages now and the k best before, by their rank now; what is not found any more comes last.

  Args:
    answer: adds the passages that are read, each with its gradient; see `score_gradients`.
  """
  gradients = {} if answer is None else score_gradients(now, question, answer)
  null = gradients.pop(NULL_PASSAGE, None)
  gradient_of = {now.store.id(row): gradient for row, gradient in gradients.items()}
  ranked_now = _ranked(make_query(now, question, answer), now)
  ranked_before = _ranked(make_query(before, question, answer), before) if before else {}
  best = [*list(ranked_now)[:k], *list(ranked_before)[:k], *gradient_of]
  places = [
    Place(passage_id, (ranked_now.get(passage_id) or ranked_before[passage_id])[0],
          *ranked_now.get(passage_id, (None,) * 3)[1:], *ranked_before.get(passage_id, (None,) * 3)[1:],
    )._replace(gradient=gradient_of.get(passage_id))
    for passage_id in dict.fromkeys(best)
  ]  # fmt: skip
  places.sort(key=lambda p: (p.rank or DEPTH + 1, p.rank_before or 0))
  return places if null is None else [*places, Place(None, "the null passage", None, None, None, None, null)]


def describe(places: list[Place], before: str | None, answer: str | None = None) -> str:
  """A table, a line each passage; with `before`, the columns for it and which way the passage went; with an answer,
  which way its gradient pushes.
  """
  header = f"{'rank':>5} {'score':>8}"
  header += f"  {'before':>6} {'score':>8}  {'':4}" if before else ""
  lines = [f"{header}  {'gradient':>13}  passage" if answer else f"{header}  passage"]
  for p in places:
    line = f"{_rank(p, p.rank):>5} {_score(p.score):>8}"
    if before:
      way = (p.rank_before or DEPTH + 1) - (p.rank or DEPTH + 1)
      line += f"  {_rank(p, p.rank_before):>6} {_score(p.score_before):>8}  {_direction(way):4}"
    if answer:
      line += f"  {_gradient(p.gradient):13}"
    lines.append(f"{line}  {p.title} ({p.passage_id})" if p.passage_id is not None else f"{line}  {p.title}")
  if answer and not any(p.gradient for p in places):
    lines.append("no passage that is read has the answer: there is nothing to learn from")
  return "\n".join(lines)


def _ranked(queries: QueryBatch, retriever: OpenQA) -> dict[str, tuple[str, int, float]]:
  """{passage id: (title, rank, score)}, best first."""
  score_BK, passage_BK = retriever.search(queries, DEPTH)
  store = retriever.store
  return {
    store.id(int(i)): (store.title(int(i)), rank, float(score))
    for rank, (i, score) in enumerate(zip(passage_BK[0], score_BK[0]), 1)
  }


def _rank(place: Place, rank: int | None) -> str:
  return str(rank) if rank is not None else "-" if place.passage_id is None else f">{DEPTH}"


def _score(score: float | None) -> str:
  return "-" if score is None else f"{score:.2f}"


def _direction(way: float) -> str:
  return "up" if way > 0 else "down" if way < 0 else ""


def _gradient(gradient: float | None) -> str:
  """Four digits: below them nothing moves."""
  return f"{'-':>8}" if gradient is None else f"{gradient:+8.4f} {_direction(round(gradient, 4))}"
