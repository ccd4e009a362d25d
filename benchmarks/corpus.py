"""Measures a corpus: how long it takes to build, how large it is, how fast it opens and gives random passages.

  python benchmarks/corpus.py --output=/tmp/corpus --input=articles.jsonl.xz --vocab=vocab.txt --tagger=none
  python benchmarks/corpus.py --output=corpora/mine          # measures one that is there

All flags but --output go to `realm build_corpus`.
"""

import os
import pathlib
import resource
import statistics
import subprocess
import sys
import threading
import time
import zlib

import numpy as np

from realm_jax.data.passages import PassageStore

BATCH = 4096
SAMPLE_SECONDS = 1.0


def main() -> None:
  arguments = sys.argv[1:]
  outputs = [a.removeprefix("--output=") for a in arguments if a.startswith("--output=")]
  if len(outputs) != 1:
    sys.exit(__doc__)
  print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {' '.join(arguments)}")
  if len(arguments) > 1:
    measure_build(arguments)
  store = PassageStore(outputs[0])
  measure_size(store)
  measure_opening(store.path)
  measure_gather(store)
  print(f"load {os.getloadavg()[0]:.1f}")


def measure_build(arguments: list[str]) -> None:
  begin = time.monotonic()
  process = subprocess.Popen([sys.executable, "-m", "realm_jax.build_corpus", *arguments])
  peak = Peak(process.pid)
  status = process.wait()
  seconds = time.monotonic() - begin
  if status:
    sys.exit(status)
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(f"build: {seconds:.0f} s wall, {used.ru_utime:.0f} s user + {used.ru_stime:.0f} s system")
  print(f"build: {peak.bytes / 2**20:.0f} MiB at the most, all {peak.num_processes} processes together (PSS)")


class Peak(threading.Thread):
  """The largest sum of the proportional set sizes of a process and its descendants."""

  def __init__(self, pid: int):
    super().__init__(daemon=True)
    self._pid, self.bytes, self.num_processes = pid, 0, 0
    self.start()

  def run(self) -> None:
    while pathlib.Path(f"/proc/{self._pid}").exists():
      pids = [self._pid]
      for pid in pids:
        pids += _children(pid)
      total = sum(map(_pss, pids))
      if total > self.bytes:
        self.bytes, self.num_processes = total, len(pids)
      time.sleep(SAMPLE_SECONDS)


def _children(pid: int) -> list[int]:
  try:
    tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
  except OSError:  # it has ended
    return []


def _pss(pid: int) -> int:
  try:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
  except OSError:
    return 0
  return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def measure_size(store: PassageStore) -> None:
  size = {p.name: p.stat().st_size for p in store.path.iterdir()}
  two_bytes = 2 * store.num_tokens
  tokens = sum(size[f"{name}.bin"] for name in ("token", "token_offset", "title_length", "body_length"))
  text = sum(size[f"{name}{part}.bin"] for name in ("id", "title", "body") for part in ("", "_offset"))
  rest = sum(size.values()) - tokens - text
  padded = 2 * len(store) * store.passage_length
  print(f"size: {len(store):,} passages, {store.num_tokens:,} tokens, {two_bytes:,} bytes at 2 bytes each")
  print(f"size: {tokens:,} bytes to find and hold the tokens, {tokens / two_bytes:.3f} times")
  print(f"size: {padded:,} bytes if every passage were padded, {padded / two_bytes:.3f} times")
  print(f"size: {text:,} bytes of ids, titles and text, {text / two_bytes:.3f} times")
  print(f"size: {rest:,} bytes of sentences, spans and vocabulary, {rest / two_bytes:.3f} times")
  print(f"size: {sum(size.values()):,} bytes in all, {sum(size.values()) / two_bytes:.3f} times")
  with open(store.path / "body.bin", "rb") as file:
    piece = file.read(2**24)
  print(f"size: zlib would make {len(zlib.compress(piece)) / len(piece):.2f} of the text")


def measure_opening(path: pathlib.Path) -> None:
  seconds = []
  for _ in range(21):
    begin = time.perf_counter()
    PassageStore(path)
    seconds.append(time.perf_counter() - begin)
  print(f"opening: {1e3 * statistics.median(seconds):.1f} ms, the slowest of 21 {1e3 * max(seconds):.1f} ms")


def measure_gather(store: PassageStore) -> None:
  rng = np.random.default_rng(0)
  id_RB = rng.integers(0, len(store), (max(100, 2 * len(store) // BATCH), BATCH))
  for name in ("body_tokens", "padded_tokens"):
    gather = getattr(store, name)
    for attempt in ("first", "again"):
      begin = time.perf_counter()
      for id_B in id_RB:
        gather(id_B)
      rate = id_RB.size / (time.perf_counter() - begin)
      print(f"gather: {rate / 1e6:.2f} million random passages a second, {name}, batches of {BATCH}, {attempt}")


if __name__ == "__main__":
  main()
