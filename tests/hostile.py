"""Texts that would run as scripts in a careless page, and what answers with them."""

import datetime
import itertools
import types

import numpy as np

from realm_jax.index.snapshot import Snapshot
from realm_jax.serving.open_qa import Answer

_PAYLOADS = """
<script>{}</script>
<img src=x onerror={}>
<svg/onload={}>
"><script>{}</script>
' onfocus={} autofocus='
</script><script>{}</script>
<iframe srcdoc='<script>parent.{}</script>'></iframe>
javascript:{}
<a href=javascript:{}>x</a>
{{{{constructor.constructor('{}')()}}}}
${{{}}}
<!--><script>{}</script>-->
<style>@import 'javascript:{}'</style>
<base href=//evil.example/{}>
<meta http-equiv=refresh content='0;url=javascript:{}'>
</textarea></title><script>{}</script>
<template><b>{}
<math><mi xlink:href='data:text/html,<script>{}</script>'>
\u202e<script>{}</script>
\U0001f600<details open ontoggle={}>
x\u2028{}\u2029x
\0<script>{}</script>\b
&lt;script&gt;{}&lt;/script&gt;
%3Cscript%3E{}%3C/script%3E
\\u003cscript\\u003e{}
"""
_CODE = [f"window.ran={i}" for i in range(40)]
HOSTILE = [payload.format(code) for payload, code in itertools.product(_PAYLOADS.strip("\n").split("\n"), _CODE)]


class HostileStore:
  """A passage has one text as id, title and body."""

  description = {"source": HOSTILE[0], "license": HOSTILE[1]}

  def __len__(self):
    return len(HOSTILE)

  def id(self, i):
    return HOSTILE[i]

  title = body = id


class HostileQA:
  """Stands in for OpenQA, without a model: finds the question itself as first passage."""

  can_read, step, published = True, 7, datetime.datetime(2020, 2, 3, 4, 5, tzinfo=datetime.UTC)

  def __init__(self):
    self.config = types.SimpleNamespace(num_passages=2)
    self.store = HostileStore()
    n = len(self.store)
    self.snapshot = Snapshot(3, {"params_step": 5, "slices": [[0, n, 5]], "searcher": "scann"}, np.zeros((n, 1)), None)
    self.searches = []  # whether they were exact

  def retrieve(self, questions, k, *, exact=False):
    self.searches.append(exact)
    first_B = np.array([HOSTILE.index(q) if q in HOSTILE else 0 for q in questions])
    return np.tile(np.linspace(9, 1, k), (len(first_B), 1)), (first_B[:, None] + np.arange(k)) % len(HOSTILE)

  def read(self, questions, score_BK, passage_id_BK):
    def answer(text, score):
      return Answer(text[2:], 0.25, text, text, text, 2, len(text), score, -1.5)

    return [
      [answer(HOSTILE[i], score) for score, i in zip(*row)] for row in zip(score_BK.tolist(), passage_id_BK.tolist())
    ]
