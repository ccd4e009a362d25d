"""The JSON API and the page: questions over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import math
import pathlib
import time
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from realm_jax.serving.batching import Batcher, Overloaded
from realm_jax.serving.guard import guarded, problem
from realm_jax.serving.open_qa import BATCH_SIZES, OpenQA

MAX_QUESTION_LENGTH = 1000  # characters; the model reads query_length wordpieces
MAX_BODY = 16 * 1024  # bytes: such a question with every character as two \uXXXX is 12,000
_MAX_FOUND = 20  # passages of a search without reading
_STATIC = pathlib.Path(__file__).with_name("static")


class Limits(NamedTuple):
  """What a server takes on."""

  requests_per_second: float = 50.0  # of one address
  max_waiting: int = 64  # requests before the device; eight batches
  timeout: float = 10.0  # seconds for a request


class _Question(BaseModel):
  model_config = ConfigDict(extra="forbid")
  question: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUESTION_LENGTH)]
  searcher: Literal["index", "exact"] = Field("index", description="exact compares with every passage")


class SearchRequest(_Question):
  """A question to retrieve passages for."""

  num_passages: int = Field(5, ge=1, le=_MAX_FOUND)


class AskRequest(_Question):
  """A question to answer."""

  num_answers: int | None = Field(None, ge=1, description="passages to show; all that were read by default")


class Passage(BaseModel):
  """A passage that was found."""

  id: str
  title: str
  text: str
  retrieval_score: float = Field(description="inner product of question and passage")


class ReadPassage(Passage):
  """A passage that was read, with its best span."""

  start: int = Field(description="the best span of this passage, in characters (Unicode code points)")
  end: int
  reader_score: float = Field(description="the span's logit")
  probability: float = Field(description="of the span among all spans of all passages read")


class Latency(BaseModel):
  """Milliseconds that the batch of this question took; waiting for its turn is not in it."""

  search_ms: float
  reading_ms: float


class SearchResponse(BaseModel):
  """What a question finds, best first."""

  passages: list[Passage]
  latency: Latency
  step: int = Field(description="of the parameters that answered")
  index_version: int = Field(description="that was searched; /api/status says how old the one in use is")


class AskResponse(BaseModel):
  """An answer with its evidence."""

  answer: str
  probability: float
  null_probability: float | None = Field(
    description="that no passage read holds an answer, as the null passage says; null: the run does not read that"
  )
  evidence: list[ReadPassage] = Field(description="the passages that were read, best answer first")
  latency: Latency
  step: int = Field(description="of the parameters that answered")
  index_version: int = Field(description="that was searched; /api/status says how old the one in use is")


class Status(BaseModel):
  """What the server answers from now."""

  can_answer: bool = Field(description="false: the run's reader has not learnt to answer, it can only search")
  step: int = Field(description="of the parameters")
  index_version: int
  index_params_step: int = Field(description="step of the parameters that embedded the passages")
  index_age: float = Field(description="how many steps older the passages' embeddings are on average")
  index_searcher: str = Field(description="exact or scann")
  searchers: list[str]
  num_passages: int
  source: str
  license: str


class Problem(BaseModel):
  """Why a request was refused or failed, in a line."""

  error: str


class _Kind(NamedTuple):
  reads: bool
  exact: bool


class _Result(NamedTuple):
  passages: list[Any]
  latency: Latency
  step: int
  index_version: int
  null_probability: float | None


class _InUse:
  """What answers now. It is replaced between two batches: each takes it once."""

  def __init__(self, open_qa: OpenQA):
    self.open_qa = open_qa


def create_app(
  open_qa: OpenQA,
  *,
  allowed_hosts: tuple[str, ...],
  limits: Limits | None = None,
  exact: bool = True,
  look: Callable[[OpenQA], OpenQA | None] = lambda now: None,
  look_every: float = 0.0,
) -> ASGIApp:
  """The application, guarded; all that it will run has been compiled.

  Args:
    allowed_hosts: see `guarded`.
    exact: whether the exact search may be asked for; where the index is ScaNN's it holds the embeddings once more.
    look: what is newer than what is in use, loaded, or None; called in a thread. At most two are in memory.
    look_every: seconds between two looks; 0: none.
  """
  limits = limits or Limits()
  in_use = _InUse(open_qa)
  can_read = open_qa.can_read
  del open_qa  # or the first one would stay in memory for ever
  batcher = Batcher(
    lambda kind, questions: _answer(in_use.open_qa, kind, questions),
    batch_size=BATCH_SIZES[-1],
    max_waiting=limits.max_waiting,
    timeout=limits.timeout,
  )
  searchers = ["index", "exact"] if exact else ["index"]

  def compile_all(open_qa: OpenQA) -> None:
    for kind in {_Kind(reads, name == "exact") for reads in {False, can_read} for name in searchers}:
      for size in BATCH_SIZES:
        _answer(open_qa, kind, ["?"] * size)

  def replace_by_newer() -> None:
    if newer := look(in_use.open_qa):
      compile_all(newer)  # most is compiled: what has the same shapes
      in_use.open_qa = newer

  async def follow() -> None:
    while look_every > 0:
      await asyncio.sleep(look_every)
      try:
        await asyncio.to_thread(replace_by_newer)
      except Exception:  # noqa: BLE001 what is in use goes on answering
        traceback.print_exc()

  compile_all(in_use.open_qa)

  @contextlib.asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with batcher:
      following = asyncio.create_task(follow())
      yield
      following.cancel()

  app = FastAPI(
    title="REALM",
    version="1",
    description="Answers to questions, from the passages of a corpus.",
    docs_url=None,  # both load scripts from elsewhere
    redoc_url=None,
    lifespan=lifespan,
    responses={code: {"model": Problem} for code in (400, 408, 413, 422, 429, 503)},
    exception_handlers=_HANDLERS,
  )

  def check(searcher: str) -> None:
    if searcher not in searchers:
      raise HTTPException(422, "searcher: this server was started without the exact search; ask for 'index'")

  @app.post("/api/ask", responses={409: {"model": Problem}})
  async def ask(request: AskRequest) -> AskResponse:
    """An answer, with all passages that were read for it."""
    check(request.searcher)
    if not can_read:
      raise HTTPException(409, "this run's reader has not learnt to answer; use /api/search")
    read: _Result = await batcher.submit(_Kind(True, request.searcher == "exact"), request.question)
    best = read.passages[0]
    return AskResponse(
      answer=best.text[best.start : best.end],
      probability=best.probability,
      null_probability=read.null_probability,
      evidence=read.passages[: request.num_answers],
      latency=read.latency,
      step=read.step,
      index_version=read.index_version,
    )

  @app.post("/api/search")
  async def search(request: SearchRequest) -> SearchResponse:
    """The best passages, unread."""
    check(request.searcher)
    found: _Result = await batcher.submit(_Kind(False, request.searcher == "exact"), request.question)
    return SearchResponse(
      passages=found.passages[: request.num_passages],
      latency=found.latency,
      step=found.step,
      index_version=found.index_version,
    )

  @app.get("/api/status")
  async def show_status() -> Status:
    """What answers: run, index and corpus."""
    return _status(in_use.open_qa, searchers)

  @app.get("/healthz")
  async def healthz() -> dict[str, str]:
    return {"status": "ok"}

  app.mount("/", StaticFiles(directory=_STATIC, html=True))
  return guarded(
    app,
    allowed_hosts=allowed_hosts,
    max_body=MAX_BODY,
    requests_per_second=limits.requests_per_second,
    timeout=limits.timeout,
  )


def _answer(open_qa: OpenQA, kind: _Kind, questions: list[str]) -> list[_Result]:
  """One batch; it runs in the device's thread."""
  store = open_qa.store
  begin = time.perf_counter()
  k = open_qa.config.num_passages if kind.reads else _MAX_FOUND
  score_BK, passage_id_BK = open_qa.retrieve(questions, k, exact=kind.exact)
  searched = time.perf_counter()
  passages: list[list[Any]]
  null_probabilities: list[float | None] = [None] * len(questions)
  if kind.reads:
    read = open_qa.read(questions, score_BK, passage_id_BK)
    null_probabilities = [answers[0].null_probability for answers in read]
    passages = [
      [
        ReadPassage(
            id=a.passage_id, title=a.title, text=a.passage, start=a.start, end=a.end, probability=a.probability,
            retrieval_score=a.retrieval_score, reader_score=a.reader_score,
        )
        for a in answers
        if math.isfinite(a.retrieval_score)
      ]
      for answers in read
    ]  # fmt: skip
  else:
    passages = [
      [
        Passage(id=store.id(i), title=store.title(i), text=store.body(i), retrieval_score=score)
        for score, i in zip(score_K, passage_id_K)
        if math.isfinite(score)  # ScaNN fills up with -inf where it found fewer
      ]
      for score_K, passage_id_K in zip(score_BK.tolist(), passage_id_BK.tolist())
    ]
  latency = Latency(search_ms=1000 * (searched - begin), reading_ms=1000 * (time.perf_counter() - searched))
  return [
    _Result(found, latency, open_qa.step, open_qa.snapshot.version, probability)
    for found, probability in zip(passages, null_probabilities)
  ]


def _status(open_qa: OpenQA, searchers: list[str]) -> Status:
  snapshot, description = open_qa.snapshot, open_qa.store.description
  return Status(
    can_answer=open_qa.can_read,
    step=open_qa.step,
    index_version=snapshot.version,
    index_params_step=snapshot.params_step,
    # Its newest slice was made by this very tower, which in fine-tuning may not have changed since.
    index_age=snapshot.age(snapshot.params_step),
    index_searcher=snapshot.manifest["searcher"],
    searchers=searchers,
    num_passages=len(open_qa.store),
    source=description.get("source") or "",
    license=description.get("license") or "",
  )


async def _refused(_: Request, error: Any) -> JSONResponse:
  return problem(error.status_code, str(error.detail), headers=error.headers)


async def _invalid(_: Request, error: Any) -> JSONResponse:
  what = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
  return problem(422, f"{what}. What may be asked is in /openapi.json")


async def _overloaded(_: Request, error: Any) -> JSONResponse:
  return problem(429, f"{error}; try again in a second", headers={"Retry-After": "1"})


async def _late(_: Request, error: Any) -> JSONResponse:
  return problem(503, "no answer within the time limit; try again", headers={"Retry-After": "5"})


async def _failed(_: Request, error: Any) -> JSONResponse:
  return problem(500, "the server failed; its log says why")


_HANDLERS: dict[Any, Any] = {
  HTTPException: _refused,
  RequestValidationError: _invalid,
  Overloaded: _overloaded,
  TimeoutError: _late,
  Exception: _failed,
}
