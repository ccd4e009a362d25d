"""The verb serve: what the API answers, what it refuses, and that texts stay data."""

import asyncio
import copy
import gc
import json
import math
import re
import threading
import time
import weakref

import jax
import numpy as np
import pytest
from hostile import HOSTILE, HostileQA
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from realm_jax import cli
from realm_jax.batch import Packed
from realm_jax.config import make_reader, make_retriever, paper_config
from realm_jax.index.searcher import ExactSearcher
from realm_jax.index.snapshot import Snapshot
from realm_jax.serve import listen
from realm_jax.serving.batching import Batcher, Overloaded
from realm_jax.serving.guard import HEADERS, guarded
from realm_jax.serving.messages import MAX_QUESTION_LENGTH
from realm_jax.serving.open_qa import OpenQA
from realm_jax.serving.web import MAX_BODY, Limits, create_app

HOSTS = ("127.0.0.1",)


@pytest.fixture
def serve():
  """Starts an application, and ends it after the test."""
  clients = []

  def start(open_qa=None, *, limits=None, **options):
    limits = limits or Limits(requests_per_second=1e6)
    app = create_app(open_qa or HostileQA(), allowed_hosts=HOSTS, limits=limits, **options)
    clients.append(TestClient(app, "http://127.0.0.1:8080", raise_server_exceptions=False).__enter__())
    return clients[-1]

  yield start
  for client in clients:
    client.__exit__()


@pytest.fixture(scope="module")
def open_qa(sample_store):
  """A small model of random numbers on the sample's passages."""
  config = paper_config("finetune")
  config.model.update(
      hidden_size=16, num_layers=1, num_heads=2, mlp_size=32, retrieval_size=16, span_hidden_size=8, dropout_rate=0.0
  )  # fmt: skip
  config.update(query_length=24, joint_length=96, num_passages=3)
  vocabulary = sample_store.vocabulary()
  retriever, reader = make_retriever(config.model, len(vocabulary)), make_reader(config.model, len(vocabulary))
  some = Packed(*np.ones((3, 1, 96), np.int32))
  params = {
    "retriever": retriever.init(jax.random.key(0), some, some)["params"],
    "reader": reader.init(jax.random.key(1), some, np.zeros((1, 1), np.int32))["params"],
  }
  emb_ND = np.random.default_rng(0).normal(size=(len(sample_store), 16)).astype(np.float32)
  manifest = {"params_step": 5, "slices": [[0, len(emb_ND), 5]], "searcher": "exact"}
  return OpenQA(config, sample_store, vocabulary, params, Snapshot(3, manifest, emb_ND, ExactSearcher(emb_ND)), 7)


def test_every_passage_read_has_its_best_span(open_qa):
  questions = ["Who discovered radium?", "What is the capital of the country?", "When?"]
  found = open_qa.answers(questions)
  score_BK, passage_id_BK = open_qa.retrieve(questions, 3)
  for b, answers in enumerate(found):
    expected = {open_qa.store.id(i): s for i, s in zip(passage_id_BK[b].tolist(), score_BK[b].tolist())}
    assert {a.passage_id: a.retrieval_score for a in answers} == expected
    total = np.array([a.retrieval_score + a.reader_score for a in answers])
    probability = np.array([a.probability for a in answers])
    assert (np.diff(total) <= 0).all() and probability.sum() < 1
    # Of the same normaliser: their ratios are those of the scores.
    np.testing.assert_allclose(np.log(probability / probability[0]), total - total[0], atol=1e-4)
    for a in answers:
      assert a.passage[a.start : a.end] == a.text != ""
  assert [a[:1] for a in found] == open_qa.answers(questions, 1) == [[a] for a in open_qa.answer(questions)]
  alone = [open_qa.answers([q])[0] for q in questions]  # batches of another size
  assert [[a[:1] + a[2:7] for a in row] for row in alone] == [[a[:1] + a[2:7] for a in row] for row in found]


def test_no_question_has_no_answer_and_an_empty_one_is_refused(open_qa):
  assert open_qa.answer([]) == open_qa.answers([], 2) == []
  assert [part.shape for part in open_qa.retrieve([], 3)] == [(0, 3), (0, 3)]
  with pytest.raises(ValueError, match="^question 1 is empty; leave it out, or write one$"):
    open_qa.answer(["Who?", " "])


def test_the_exact_search_asks_not_the_index(open_qa):
  class FindsTheFirst:
    def search(self, query_emb_BD, k):
      return np.zeros((len(query_emb_BD), k), np.float32), np.tile(np.arange(k), (len(query_emb_BD), 1))

  other = copy.copy(open_qa)
  other.snapshot = open_qa.snapshot._replace(searcher=FindsTheFirst())
  np.testing.assert_array_equal(other.retrieve(["Who?"], 3)[1], [[0, 1, 2]])
  for found, expected in zip(other.retrieve(["Who?"], 3, exact=True), open_qa.retrieve(["Who?"], 3)):
    np.testing.assert_array_equal(found, expected)


def test_the_api_answers_what_the_library_does(open_qa, serve):
  client = serve(open_qa)
  question = "Who discovered radium?"
  expected = open_qa.answers([question])[0]
  result = client.post("/api/ask", json={"question": f" {question} ", "searcher": "exact"}).json()
  assert result.keys() == {"answer", "probability", "null_probability", "evidence", "latency", "step", "index_version"}
  assert (result["step"], result["index_version"]) == (7, 3)
  assert (result["answer"], result["probability"]) == (expected[0].text, pytest.approx(expected[0].probability))
  assert len(result["evidence"]) == 3
  for shown, answer in zip(result["evidence"], expected):
    assert shown == {
      "id": answer.passage_id, "title": answer.title, "text": answer.passage, "start": answer.start, "end": answer.end,
      "probability": pytest.approx(answer.probability), "retrieval_score": pytest.approx(answer.retrieval_score),
      "reader_score": pytest.approx(answer.reader_score),
    }  # fmt: skip
  assert result["null_probability"] is None  # this run doesn't read the null passage
  assert result["latency"]["search_ms"] > 0 and result["latency"]["reading_ms"] > 0
  one = client.post("/api/ask", json={"question": question, "num_answers": 1}).json()
  assert (one["answer"], one["evidence"]) == (result["answer"], result["evidence"][:1])

  score_BK, passage_id_BK = open_qa.retrieve([question], 4)
  found = client.post("/api/search", json={"question": question, "num_passages": 4}).json()
  assert found["passages"] == [
    {"id": open_qa.store.id(i), "title": open_qa.store.title(i), "text": open_qa.store.body(i), "retrieval_score": s}
    for s, i in zip(score_BK[0].tolist(), passage_id_BK[0].tolist())
  ]
  assert client.get("/api/status").json() == {
    "can_answer": True, "step": 7, "index_version": 3, "index_params_step": 5, "index_age": 0.0,
    "index_published": None, "index_searcher": "exact", "searchers": ["index", "exact"], "num_passages": 40,
    "source": "", "license": "",
  }  # fmt: skip
  assert client.get("/healthz").json() == {"status": "ok"}


def test_the_status_says_when_the_index_was_published(serve):
  assert serve().get("/api/status").json()["index_published"] == "2020-02-03T04:05:00Z"


def test_hostile_texts_stay_data(serve):
  client = serve()
  assert len(set(HOSTILE)) == 1000
  for text in HOSTILE:
    response = client.post("/api/ask", json={"question": text})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()
    best = response.json()["evidence"][0]
    assert (best["id"], best["title"], best["text"], response.json()["answer"]) == (text, text, text, text[2:])
    found = client.post("/api/search", json={"question": text}).json()["passages"][0]
    assert (found["id"], found["title"], found["text"]) == (text, text, text)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    ('{"question": ""}', "question: String should have at least 1 character"),
    ('{"question": " \\n"}', "question: String should have at least 1 character"),
    (json.dumps({"question": "a" * (MAX_QUESTION_LENGTH + 1)}), "question: String should have at most 1000 characters"),
    ('{"question": "\\ud800"}', "question: Input should be a valid string"),
    ('{"question": 1}', "question: Input should be a valid string"),
    ('{"question": "x", "num_answers": 0}', "num_answers: Input should be greater than or equal to 1"),
    ('{"question": "x", "searcher": "<b>"}', "searcher: Input should be 'index' or 'exact'"),
    ('{"question": "x", "more": 1}', "more: Extra inputs are not permitted"),
    ("[]", "body: Input should be a valid dictionary"),
    ("{", "JSON decode error"),
  ],
)
def test_what_is_not_a_question_gets_422_and_a_remedy(serve, body, message):
  response = serve().post("/api/ask", content=body, headers={"Content-Type": "application/json"})
  assert response.status_code == 422
  assert message in response.json()["error"] and response.json()["error"].endswith(" is in /openapi.json")


def test_a_form_of_another_page_is_no_question(serve):
  """Browsers let any page send text/plain, but JSON only with this server's consent, which it never gives."""
  body = '{"question": "x"}'
  response = serve().post("/api/ask", content=body, headers={"Content-Type": "text/plain"})
  assert response.status_code == 422
  assert "; the body is read as JSON if the header  Content-Type: application/json  is" in response.json()["error"]
  asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
  response = serve().options("/api/ask", headers=asked)
  assert response.status_code == 405 and "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("body", ["[" * MAX_BODY, '{"question":' * 1000, "9" * 10_000, b"\xff\xfe"])
def test_a_body_that_breaks_parsers_is_refused(serve, body):
  response = serve().post("/api/ask", content=body, headers={"Content-Type": "application/json"})
  assert response.status_code in (400, 422) and response.json().keys() == {"error"}


def test_a_large_body_gets_413_declared_or_not(serve):
  client = serve()
  body = json.dumps({"question": "x"}).ljust(MAX_BODY).encode()
  kind = {"Content-Type": "application/json"}
  assert client.post("/api/ask", content=body, headers=kind).status_code == 200
  for content in (body + b" ", iter([body, b" "])):
    response = client.post("/api/ask", content=content, headers=kind)
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert response.json() == {"error": f"the request's body is longer than {MAX_BODY} bytes; ask a shorter question"}


def test_the_longest_question_fits_the_body():
  assert len(json.dumps({"question": "\U0001f600" * MAX_QUESTION_LENGTH})) < MAX_BODY


def test_the_rate_of_an_address_is_limited(serve):
  client = serve(limits=Limits(requests_per_second=0.5))
  assert client.post("/api/search", json={"question": "x"}).status_code == 200
  response = client.post("/api/search", json={"question": "x"})
  assert (response.status_code, response.headers["retry-after"]) == (429, "1")
  assert client.get("/").status_code == 200


def test_a_full_queue_gets_429(serve):
  response = serve(limits=Limits(max_waiting=0)).post("/api/ask", json={"question": "x"})
  assert (response.status_code, response.headers["retry-after"]) == (429, "1")
  assert response.json() == {"error": "0 requests wait already; try again in a second"}


def test_a_late_answer_gets_503(serve):
  fake, ended = HostileQA(), threading.Event()
  client = serve(fake, limits=Limits(timeout=0.05))
  fake.read = lambda *_: ended.wait(10)
  response = client.post("/api/ask", json={"question": "x"})
  ended.set()
  assert (response.status_code, response.headers["retry-after"]) == (503, "5")
  assert response.json() == {"error": "no answer within the time limit; try again"}


def test_a_failure_shows_nothing_of_the_inside(serve):
  fake = HostileQA()
  client = serve(fake)

  def fail(*_):
    raise RuntimeError(__file__)

  fake.read = fail
  response = client.post("/api/ask", json={"question": "x"})
  assert (response.status_code, response.json()) == (500, {"error": "the server failed; its log says why"})
  assert response.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()
  assert client.post("/api/search", json={"question": "x"}).status_code == 200  # it lives on


def test_a_reader_that_has_not_learnt_is_not_asked(serve):
  fake = HostileQA()
  fake.can_read = False
  client = serve(fake)
  response = client.post("/api/ask", json={"question": "x"})
  assert (response.status_code, "/api/search" in response.json()["error"]) == (409, True)
  assert client.get("/api/status").json()["can_answer"] is False


def test_without_the_exact_search_it_is_refused(serve):
  fake = HostileQA()
  client = serve(fake, exact=False)
  assert client.post("/api/search", json={"question": "x", "searcher": "exact"}).status_code == 422
  assert not any(fake.searches)


def test_passages_that_no_search_found_are_not_shown(serve):
  fake = HostileQA()
  client = serve(fake)
  fake.retrieve = lambda questions, k, exact: (np.array([[2.0, -math.inf]]), np.array([[0, 1]]))
  for path, name in (("/api/search", "passages"), ("/api/ask", "evidence")):
    assert [p["retrieval_score"] for p in client.post(path, json={"question": "x"}).json()[name]] == [2.0]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""])
def test_a_foreign_name_is_refused(serve, host):
  client = serve()
  for response in (
    client.get("/", headers={"Host": host}),
    client.post("/api/ask", json={"question": "x"}, headers={"Host": host}),
  ):
    assert (response.status_code, response.json()) == (
      400, {"error": "this server has no such name; address it by one of its --allowed_hosts"}
    )  # fmt: skip
    assert response.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()


@pytest.mark.parametrize(
  ("host", "names", "is_known"),
  [
    ("qa.example.org", ["QA.example.org"], True),
    ("QA.example.org:80", ["qa.example.org"], True),
    ("[::1]:8080", ["[::1]"], True),
    ("::1", ["[::1]"], False),
    ("a.example.org", ["*.example.org"], True),
    ("example.org", ["*.example.org"], False),
    ("evilexample.org", ["*.example.org"], False),
    ("evil.example:80@qa.example.org", ["qa.example.org"], False),
    ("", ["qa.example.org"], False),
    ("", ["*"], True),
  ],
)
def test_by_which_names_the_server_is_known(host, names, is_known):
  async def app(scope, receive, send):
    await PlainTextResponse("ok")(scope, receive, send)

  client = TestClient(guarded(app, allowed_hosts=names, max_body=1, requests_per_second=1, timeout=1))
  assert client.get("/", headers={"Host": host}).status_code == (200 if is_known else 400)


@pytest.mark.parametrize(
  "path", ["/../setup.cfg", "/%2e%2e/web.py", "/..%2fweb.py", "//etc/passwd", "/nothing", "/docs"]
)
def test_nothing_else_is_served(serve, path):
  response = serve().get(path)
  assert (response.status_code, response.json()) == (404, {"error": "Not Found"})


def test_the_page_takes_nothing_from_elsewhere(serve):
  client = serve()
  kinds = {"/": "text/html", "/style.css": "text/css", "/app.js": "text/javascript"}
  for path, kind in kinds.items():
    response = client.get(path)
    assert response.headers["content-type"].startswith(kind)
    assert response.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items()
    assert not re.search(
      r"https?:|//\w|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\sstyle=|\son\w+=", response.text
    )
  policy = HEADERS["Content-Security-Policy"]
  assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy


def test_the_api_is_described(serve):
  description = serve().get("/openapi.json").json()
  assert description["paths"].keys() == {"/api/ask", "/api/search", "/api/status", "/healthz"}
  assert description["paths"]["/api/ask"]["post"]["responses"].keys() >= {"200", "409", "413", "422", "429", "503"}


def test_requests_that_wait_together_are_one_batch():
  release = threading.Event()
  batches = []

  def work(kind, questions):
    batches.append((kind, questions))
    release.wait(10)
    return [f"{kind} {q}" for q in questions]

  async def ask():
    async with Batcher(work, batch_size=2, max_waiting=4, timeout=10) as batcher:
      first = asyncio.create_task(batcher.submit("a", "0"))
      while not batches:
        await asyncio.sleep(0.001)
      later = [asyncio.create_task(batcher.submit(kind, str(i))) for i, kind in enumerate("abaa", 1)]
      await asyncio.sleep(0)
      with pytest.raises(Overloaded, match="4 requests wait already"):
        await batcher.submit("a", "5")
      release.set()
      return await asyncio.gather(first, *later)

  assert asyncio.run(ask()) == ["a 0", "a 1", "b 2", "a 3", "a 4"]
  assert batches == [("a", ["0"]), ("a", ["1", "3"]), ("b", ["2"]), ("a", ["4"])]


def test_a_request_that_waited_too_long_is_never_begun():
  release = threading.Event()
  batches = []

  def work(kind, questions):
    batches.append(questions)
    release.wait(10)
    return questions

  async def ask():
    async with Batcher(work, batch_size=2, max_waiting=4, timeout=0.05) as batcher:
      late = await asyncio.gather(*(batcher.submit("a", q) for q in "01"), return_exceptions=True)
      late += await asyncio.gather(batcher.submit("a", "2"), return_exceptions=True)
      release.set()
      return late, await batcher.submit("a", "3")

  late, answer = asyncio.run(ask())
  assert [type(error) for error in late] == [TimeoutError] * 3
  assert (answer, batches) == ("3", [["0", "1"], ["3"]])


def newer_qa(version, step):
  fake = HostileQA()
  fake.snapshot, fake.step = fake.snapshot._replace(version=version), step
  return fake


def wait_until(condition):
  deadline = time.monotonic() + 120
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_what_is_newer_is_taken_into_use_between_requests(serve):
  """One after the other: never more than two are in memory, and none that has been replaced."""
  alive, offered = weakref.WeakSet(), threading.Event()
  most = 0

  def look(now):
    nonlocal most
    if not offered.is_set() or now.snapshot.version == 6:
      return None
    found = newer_qa(now.snapshot.version + 1, now.step + 10)
    alive.add(found)
    gc.collect()
    most = max(most, len(alive))
    return found

  client = serve(look=look, look_every=0.01)
  asked = client.post("/api/ask", json={"question": "x"}).json()
  assert (asked["step"], asked["index_version"]) == (7, 3)
  assert client.get("/api/status").json()["index_age"] == 0.0
  offered.set()
  wait_until(lambda: client.get("/api/status").json()["index_version"] == 6)
  gc.collect()
  assert len(alive) == 1 and most == 2
  status = client.get("/api/status").json()
  assert (status["step"], status["index_age"]) == (37, 0.0)
  for path in ("/api/ask", "/api/search"):
    answered = client.post(path, json={"question": "x"}).json()
    assert (answered["step"], answered["index_version"]) == (37, 6)


def test_what_can_not_answer_is_not_taken_into_use(serve, capsys):
  broken, tried = newer_qa(4, 8), threading.Event()

  def fail(*_):
    tried.set()
    raise ValueError("the retriever's parameters have diverged")

  broken.read = fail
  client = serve(look=lambda now: broken, look_every=0.01)
  assert tried.wait(120)
  assert client.post("/api/ask", json={"question": "x"}).json()["index_version"] == 3
  wait_until(lambda: "have diverged" in capsys.readouterr().err)


def test_a_port_that_is_taken_is_named():
  with listen("127.0.0.1", 0) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 .*choose another --port"):
      listen("127.0.0.1", port)


def test_all_machines_are_answered_only_by_name(capsys):
  assert cli.run(["serve", "--workdir=/nonexistent", "--host=0.0.0.0"]) == 1
  assert "--allowed_hosts=NAME" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["qa.*", "qa.example.org:80", "http://qa", "a b", "::1"])
def test_a_name_that_no_machine_has_is_refused_first(realm, host):
  status, out, err = realm("serve", "--workdir=/nonexistent", f"--allowed_hosts={host}")
  assert (status, out) == (1, "")
  assert err.startswith(f"realm serve: --allowed_hosts: {host!r} is no name of a machine; give names without a port")
