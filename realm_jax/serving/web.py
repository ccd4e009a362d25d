"""The JSON API and the page: questions over HTTP."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from realm_jax.serving.answering import Answering, Kind
from realm_jax.serving.batching import Overloaded
from realm_jax.serving.guard import guarded, problem
from realm_jax.serving.messages import AskRequest, AskResponse, Problem, SearchRequest, SearchResponse, Status
from realm_jax.serving.open_qa import OpenQA

MAX_BODY = 16 * 1024  # bytes: the longest question with every character as two \uXXXX is 12,000
_STATIC = pathlib.Path(__file__).with_name("static")


class Limits(NamedTuple):
  """What a server takes on."""

  requests_per_second: float = 50.0  # of one address
  max_waiting: int = 64  # requests before the device; eight batches
  timeout: float = 10.0  # seconds for a request


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
    look, look_every: how newer ones are taken into use, see `Answering`.
  """
  limits = limits or Limits()
  searchers = ["index", "exact"] if exact else ["index"]
  answering = Answering(
    open_qa,
    kinds={Kind(reads, searcher == "exact") for reads in {False, open_qa.can_read} for searcher in searchers},
    max_waiting=limits.max_waiting,
    timeout=limits.timeout,
    look=look,
    look_every=look_every,
  )

  @contextlib.asynccontextmanager
  async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with answering.running():
      yield

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
  _add_routes(app, answering, searchers)
  app.mount("/", StaticFiles(directory=_STATIC, html=True))
  return guarded(
    app,
    allowed_hosts=allowed_hosts,
    max_body=MAX_BODY,
    requests_per_second=limits.requests_per_second,
    timeout=limits.timeout,
  )


def _add_routes(app: FastAPI, answering: Answering, searchers: list[str]) -> None:
  def kind(searcher: str, *, reads: bool) -> Kind:
    if searcher not in searchers:
      raise HTTPException(422, "searcher: this server was started without the exact search; ask for 'index'")
    return Kind(reads, searcher == "exact")

  @app.post("/api/ask", responses={409: {"model": Problem}})
  async def ask(request: AskRequest) -> AskResponse:
    """An answer, with all passages that were read for it."""
    reading = kind(request.searcher, reads=True)
    if not answering.open_qa.can_read:
      raise HTTPException(409, "this run's reader has not learnt to answer; use /api/search")
    read = await answering.answer(reading, request.question)
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
    found = await answering.answer(kind(request.searcher, reads=False), request.question)
    return SearchResponse(
      passages=found.passages[: request.num_passages],
      latency=found.latency,
      step=found.step,
      index_version=found.index_version,
    )

  @app.get("/api/status")
  async def show_status() -> Status:
    """What answers: run, index and corpus."""
    return _status(answering.open_qa, searchers)

  @app.get("/healthz")
  async def healthz() -> dict[str, str]:
    return {"status": "ok"}


def _status(open_qa: OpenQA, searchers: list[str]) -> Status:
  snapshot, description = open_qa.snapshot, open_qa.store.description
  return Status(
    can_answer=open_qa.can_read,
    step=open_qa.step,
    index_version=snapshot.version,
    index_params_step=snapshot.params_step,
    # Its newest slice was made by this very tower, which in fine-tuning may not have changed since.
    index_age=snapshot.age(snapshot.params_step),
    index_published=open_qa.published,
    index_searcher=snapshot.manifest["searcher"],
    searchers=searchers,
    num_passages=len(open_qa.store),
    source=description.get("source") or "",
    license=description.get("license") or "",
  )


async def _refused(_: Request, error: Any) -> JSONResponse:
  return problem(error.status_code, str(error.detail), headers=error.headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
  what = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
  if "json" not in request.headers.get("Content-Type", "").lower():
    what += "; the body is read as JSON if the header  Content-Type: application/json  is there"
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
