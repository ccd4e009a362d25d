"""Describes a corpus for people: what is in it, where it comes from, how it was built."""

from __future__ import annotations

import numpy as np

from realm_jax.data.passages import PassageStore

_BINS = 8
_BAR_WIDTH = 40


def describe_corpus(path) -> str:
  """The data card of a passage store, as text."""
  store = PassageStore(path)
  d = store.description
  length = _lengths(store)
  num_bytes = {p.name: p.stat().st_size for p in sorted(store.path.iterdir())}
  token_bytes = sum(num_bytes[f"{name}.bin"] for name in ("token", "token_offset", "title_length", "body_length"))
  spans = ", ".join(f"{count:,} {kind} ({count / len(store):.2f})" for kind, count in d["num_spans"].items() if count)
  rows = [
    ("source", d.get("source") or "not given (--source)"),
    ("licence", d.get("license") or "not given (--license)"),
    ("articles", f"{d['num_articles']:,}" if "num_articles" in d else "unknown"),
    ("passages", f"{len(store):,} of at most {store.passage_length} wordpieces, 3 special tokens included"),
    ("sentences", f"{d['num_sentences']:,} ({d['num_sentences'] / len(store):.2f} a passage)"),
    ("wordpieces", f"{store.num_tokens:,} ({store.num_tokens / len(store):.1f} a passage)"),
    ("salient spans", f"{spans or 'none'} (a passage)"),
    ("tagger", d.get("tagger", "unknown")),
    ("settings", ", ".join(f"{k} {v}" for k, v in d.get("settings", {}).items() if v is not None)),
    ("rejected", _counts(d.get("rejected", {}))),
    ("left out", _counts(d.get("left_out", {}))),
    ("vocabulary", f"{d['vocabulary_size']:,} wordpieces, {'uncased' if d['lowercase'] else 'cased'}"),
    ("vocabulary digest", d["vocabulary_digest"]),
    ("content digest", store.content_digest),
    ("size", f"{sum(num_bytes.values()):,} bytes, of which {token_bytes:,} find and hold the wordpieces"),
  ]
  width = max(len(name) for name, _ in rows)
  lines = [f"{store.path}", *(f"  {name:<{width}}  {value}" for name, value in rows), "", "  wordpieces a passage"]
  return "\n".join(lines + _histogram(length, store.passage_length))


def _lengths(store: PassageStore) -> np.ndarray:
  return store.title_length_N.astype(np.int32) + store.body_length_N


def _histogram(length: np.ndarray, longest: int) -> list[str]:
  edges = np.linspace(0, longest, _BINS + 1).astype(int)
  count = np.histogram(length, edges)[0]
  return [
    f"  {first:>5} to {last - 1:<5} {n:>12,}  {'#' * round(_BAR_WIDTH * n / max(1, count.max()))}".rstrip()
    for first, last, n in zip(edges, edges[1:], count)
  ]


def _counts(count: dict[str, int]) -> str:
  return "; ".join(f"{n:,} with {reason}" for reason, n in count.items()) or "none"
