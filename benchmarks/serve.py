"""Measures realm serve: latency with a few clients, then whether it lives through more load than it can take.

  python benchmarks/serve.py --workdir=runs/finetune

First, clients that each ask again as soon as they are answered; then, for --overload_seconds, questions at a fixed
rate, --overload times what the server managed before. Prints how they were answered, and the server's memory. Server
and clients share the machine.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from absl import app, flags

from realm_jax.data.questions import read_questions
from realm_jax.data.sample import SAMPLE_QUESTIONS

_WORKDIR = flags.DEFINE_string("workdir", None, "A run with an index; it should be fine-tuned.", required=True)
_CLIENTS = flags.DEFINE_integer("clients", 8, "Clients of the first part.", 1)
_SECONDS = flags.DEFINE_float("seconds", 20, "Duration of the first part.", 0.1)
_OVERLOAD = flags.DEFINE_float("overload", 4, "Load of the second part, relative to the first's.", 0)
_OVERLOAD_SECONDS = flags.DEFINE_float("overload_seconds", 300, "Duration of the second part.", 0)
_SENDERS = 160  # of the second part: more than the 64 that may wait and the 8 that are being answered


def main(argv: list[str]) -> None:
  del argv
  questions = [q.question for q in read_questions(str(SAMPLE_QUESTIONS["train"])).questions]
  begin = time.monotonic()
  server = subprocess.Popen(
    [sys.executable, "-m", "realm_jax.cli", "serve", f"--workdir={_WORKDIR.value}", "--port=0",
     "--requests_per_second=1e6"], stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    assert server.stdout
    address = server.stdout.readline().split("/")[2]
    ask = asker(address, questions)
    path = "/api/ask" if request(address, "GET", "/api/status")["can_answer"] else "/api/search"
    ask(path)
    print(
      f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ready after {time.monotonic() - begin:.1f} s, {path}"
    )
    answered = run(lambda: ask(path), _CLIENTS.value, _SECONDS.value)
    rate = report(f"{_CLIENTS.value} clients", answered, _SECONDS.value)
    if _OVERLOAD_SECONDS.value:
      before = memory(server.pid)
      pause = _SENDERS / (_OVERLOAD.value * rate)
      answered = run(lambda: ask(path), _SENDERS, _OVERLOAD_SECONDS.value, pause)
      report(f"{_OVERLOAD.value:g} times {rate:.0f} a second", answered, _OVERLOAD_SECONDS.value)
      after = memory(server.pid)
      print(f"memory {before:.0f} MB before, {after:.0f} MB after ({after / before:.2f} times)")
      print(f"and then: {run(lambda: ask(path), 1, 0.1)[0]}")
  finally:
    server.terminate()
    server.wait(30)


def request(address: str, method: str, path: str) -> dict:
  connection = http.client.HTTPConnection(address, timeout=60)
  connection.request(method, path)
  return json.loads(connection.getresponse().read())


def asker(address: str, questions: list[str]) -> Callable[[str], tuple[int, float]]:
  """A function that asks the next question: the status, and the seconds until it was there."""
  next_question = itertools.cycle(questions)
  local = threading.local()

  def ask(path: str) -> tuple[int, float]:
    begin = time.perf_counter()
    if not hasattr(local, "connection"):
      local.connection = http.client.HTTPConnection(address, timeout=60)
    body = json.dumps({"question": next(next_question)})
    try:
      local.connection.request("POST", path, body, {"Content-Type": "application/json"})
      response = local.connection.getresponse()
      response.read()
    except (http.client.HTTPException, OSError):
      local.connection.close()
      return 0, time.perf_counter() - begin
    return response.status, time.perf_counter() - begin

  return ask


def run(ask: Callable[[], tuple[int, float]], num_clients: int, seconds: float, pause: float = 0.0) -> list:
  """What the clients saw; with a pause, each asks once in so many seconds."""
  seen: list[tuple[int, float]] = []
  end = time.monotonic() + seconds

  def client(number: int) -> None:
    next_time = time.monotonic() + pause * number / num_clients
    while time.monotonic() < end:
      time.sleep(max(0.0, next_time - time.monotonic()))
      seen.append(ask())
      next_time = max(next_time + pause, time.monotonic() - pause)

  threads = [threading.Thread(target=client, args=(i,)) for i in range(num_clients)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return seen


def report(what: str, seen: list[tuple[int, float]], seconds: float) -> float:
  """Prints it; returns the answers a second."""
  counts = Counter(status for status, _ in seen)
  good = 1000 * np.array([duration for status, duration in seen if status == 200])
  p50, p95, p99 = np.percentile(good, [50, 95, 99])
  statuses = ", ".join(f"{count} with {status or 'no answer'}" for status, count in sorted(counts.items()))
  print(f"{what}: {len(seen)} questions, {statuses}; {len(good) / seconds:.1f} answers a second,")
  print(f"  p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms; load {os.getloadavg()[0]:.1f}", flush=True)
  return len(good) / seconds


def memory(pid: int) -> float:
  """Resident MB of a process."""
  status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
  return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
  app.run(main)
