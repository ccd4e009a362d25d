"""The report: one page that is whole, shows all and runs nothing."""

import html.parser
import json
import math
import re

import pytest

from realm_jax.serving.evaluation import KINDS
from realm_jax.serving.evaluation_charts import histogram, line_chart
from realm_jax.serving.evaluation_report import Case, ShownPassage, make_report, shown_answer
from realm_jax.serving.open_qa import Answer

HOSTILE = """</title></style><script src="http://x.y/z.js">alert('1')</script><img src=x onerror=alert(1)>&amp;{0}"""
RESULT = {
  "num_questions": 3, "skipped": HOSTILE, "recall@1": 33.33, "recall@5": 66.67, "token_recall@1": 0.0,
  "exact_match": 33.33, "outcomes": {"right": 1},
  "interval_95": {
    "recall@1": [0.0, 100.0], "recall@5": [10.0, 100.0], "token_recall@1": [0.0, 0.0], "exact_match": [0.0, 90.0],
  },
}  # fmt: skip
METRICS = [
  {"step": 10, "loss": 5.0, "retrieval_utility": -0.5}, {"step": 20, "loss": 4.0, "retrieval_utility": 0.5, "x": None},
  {"step": 30, "loss": 2.0, "retrieval_utility": 0.4, HOSTILE: 1},
]  # fmt: skip
VOID = {"meta", "line", "rect", "polyline", "path", "br", "img"}


class Page(html.parser.HTMLParser):
  """Its elements, and the text of some."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.attributes, self.marked, self._open = [], [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    self.attributes += attrs
    self._open.append(tag)

  def handle_endtag(self, tag):
    while self._open and self._open.pop() != tag:
      pass

  def handle_data(self, data):
    if self._open and self._open[-1] == "mark":
      self.marked.append(data)


def case(kind, text="<b>Radium</b> & Curie", span=(3, 9)):
  return Case(HOSTILE, (HOSTILE, "x"), HOSTILE, kind, [ShownPassage(HOSTILE, text, *span, True, HOSTILE)])


@pytest.fixture(scope="module")
def page():
  metrics = "\n".join(map(json.dumps, METRICS)) + '\n{"step": 40, "lo'
  return make_report(HOSTILE, RESULT, [case("right"), case("not read"), case("right")], metrics.encode())


def test_nothing_runs_and_nothing_is_fetched(page):
  parsed = Page(page)
  assert not {"script", "img", "link", "iframe", "object"} & set(parsed.elements)
  assert not {name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "action")}
  assert {value[0] for name, value in parsed.attributes if name == "href"} == {"#"}
  assert "default-src 'none'" in page and "url(" not in page and "@import" not in page


def test_outcomes_sum_to_all(page):
  counts = dict(re.findall(r'<tr><td><a href="#[a-z-]+">([a-z ]+)</a><td>(\d+)', page))
  assert counts == dict.fromkeys(KINDS, "0") | {"right": "2", "not read": "1"}
  assert "<th>all<th>3" in page
  assert Page(page).elements.count("details") == 3
  assert re.findall(r'<details id="q(\d)">', page) == ["1", "3", "2"]  # by kind


def test_scores_and_spans_are_shown(page):
  assert "<td>exact_match<td>33.33<td>0.00 to 90.00" in page
  assert Page(page).marked == ["Radium"] * 3
  assert "&lt;b&gt;<mark>Radium</mark>&lt;/b&gt; &amp; Curie" in page
  assert page.count("holds an answer</span>") == 3


def test_a_passage_without_span():
  page = make_report("t", RESULT, [case("not read", "some <text>", (0, 0))._replace(prediction=None)], None)
  assert "some &lt;text&gt;" in page and "<mark>" not in page and "No metrics.jsonl" in page and "→" not in page


def test_what_is_not_shown_is_counted():
  page = make_report("t", RESULT, [case("right")._replace(num_more=90), case("right")], None)
  assert page.count("more passages were read") == 1 and "90 more passages were read" in page


def test_the_histogram_over_the_null_passage():
  page = make_report("t", RESULT, [case("right")] * 3, None, over_null_B=[0.5, 0.5, 3.0])
  chart = page[page.index('aria-label="answer over null passage, questions"') :]
  heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', chart[: chart.index("</svg>")])]
  assert heights[0] == pytest.approx(2 * heights[-1], abs=0.2) and sum(heights[1:-1]) == 0
  assert "reads_null_passage" not in page
  page = make_report("t", RESULT, [case("right")], None)
  assert "No histogram of retrieval utility" in page and "reads_null_passage" in page
  unread = {"recall@1": 33.33, "interval_95": {"recall@1": [0.0, 100.0]}}
  assert "reads_null_passage" not in make_report("t", unread, [case("not read")], None)


def test_an_answer_is_shown_with_its_scores():
  shown = shown_answer(Answer("b", 0.1234, "i", "T", "abc", 1, 2, 9.876, -1.5), has_answer=False)
  assert shown == ShownPassage("T", "abc", 1, 2, False, "probability 0.123, retrieval score 9.88, reader score -1.50")


def test_curves_are_those_of_the_metrics(page):
  titles = re.findall(r'<svg [^>]*aria-label="([^"]*)"', page)
  assert titles[:4] == ["recall@k, %", "loss", "retrieval utility", html.escape(HOSTILE.replace("_", " "))]
  assert titles[4:] == ["retrieval utility, logged values"]
  assert "1 damaged lines of metrics.jsonl are left out" in page


def test_points_stand_where_their_values_are():
  chart = line_chart("t", "step", {"a": [(0, 0.0), (5, 1.0), (10, 4.0), (7, math.nan)]})
  (points,) = re.findall(r'<polyline points="([^"]*)"', chart)
  places = [tuple(map(float, p.split(","))) for p in points.split()]
  (left, bottom), (x, y), (right, top) = places
  assert (x - left) / (right - left) == pytest.approx(0.5, abs=1e-3)
  assert (bottom - y) / (bottom - top) == pytest.approx(0.25, abs=1e-3)
  assert 0 < left < right < 360 and 0 < top < bottom < 220
  assert "t (1 not finite)" in chart


def test_intervals_and_flat_lines():
  chart = line_chart("t", "k", {"a": [(1, 2.0)], "b": [(1, 2.0)]}, intervals={"b": [(1.0, 3.0)]})
  assert chart.count("<line") == 1 and "NaN" not in chart
  assert "no finite value" in line_chart("t", "k", {"a": [(1, math.inf)]})


def test_histogram():
  chart = histogram("h", "nats", [0.0, 0.1, 0.1, 1.0, math.nan], num_bins=2)
  heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', chart)]
  assert heights[0] == pytest.approx(3 * heights[1], abs=0.2) and heights[1] > 0
  assert "h (1 not finite)" in chart
  assert "h (1 not finite)" in histogram("h", "nats", [math.nan])
