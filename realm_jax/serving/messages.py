"""What the JSON API is asked and what it answers; /openapi.json is made of this."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_QUESTION_LENGTH = 1000  # characters; the model reads query_length wordpieces
MAX_FOUND = 20  # passages of a search without reading


class _Question(BaseModel):
  model_config = ConfigDict(extra="forbid")
  question: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUESTION_LENGTH)]
  searcher: Literal["index", "exact"] = Field("index", description="exact compares with every passage")


class SearchRequest(_Question):
  """A question to retrieve passages for."""

  num_passages: int = Field(5, ge=1, le=MAX_FOUND)


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
  index_published: datetime.datetime | None = Field(description="by the clock of the disk or bucket that holds it")
  index_searcher: str = Field(description="exact or scann")
  searchers: list[str]
  num_passages: int
  source: str
  license: str


class Problem(BaseModel):
  """Why a request was refused or failed, in a line."""

  error: str
