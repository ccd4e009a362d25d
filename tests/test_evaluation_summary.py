"""Results of evaluations as people see them."""

import io
import json

from realm_jax import cli
from realm_jax.serving.evaluation_summary import describe

RESULT = {
  "num_questions": 3,
  "skipped": "1 with no answer (line 2)",
  "checkpoint": 40,
  "outcomes": {"right": 1, "not read": 2},
  "selective": {
    "answered": 100.0,
    "exact_match_of_surest": {"25": 50.0, "50": 33.33},
    "exact_match_answered": None,
    "null_auc": 0.7312,
  },
  "recall@20": 100.0,
  "exact_match": 33.33,
  "interval_95": {"recall@20": [100.0, 100.0], "exact_match": [0.0, 66.67]},
}


def test_a_result():
  assert describe(RESULT).splitlines() == [
    "num_questions 3, skipped 1 with no answer (line 2), checkpoint 40",
    "outcomes: right 1, not read 2",
    "selective: answered 100.0, exact_match_of_surest@25 50.0, exact_match_of_surest@50 33.33, null_auc 0.7312",
    "",
    "             percent   95 % interval",
    "recall@20      100.0  100.0 to 100.0",
    "exact_match     33.3     0.0 to 66.7",
  ]


def test_what_there_is_none_of_is_left_out():
  assert describe(RESULT | {"skipped": ""}).startswith("num_questions 3, checkpoint 40\n")


def test_a_comparison():
  difference = {"exact_match": -16.67, "interval_95": {"exact_match": [-50.0, 0.0]}}
  compared = RESULT | {"compared": {"num_missing": 1, "difference": difference}}
  assert describe(compared).splitlines()[3:] == [
    "compared: num_missing 1",
    "",
    "             percent   95 % interval  difference  95 % interval",
    "recall@20      100.0  100.0 to 100.0",
    "exact_match     33.3     0.0 to 66.7       -16.7   -50.0 to 0.0",
  ]


def test_a_terminal_gets_lines_and_a_pipe_json(tmp_path, monkeypatch, capsys):
  (tmp_path / "q.jsonl").write_text('{"question": "who?", "answer": ["me"]}\n')
  (tmp_path / "p.jsonl").write_text('{"question": "who?", "prediction": "me"}\n')
  command = ["evaluate", f"--predictions={tmp_path}/p.jsonl", f"--questions={tmp_path}/q.jsonl"]
  assert cli.run(command) == 0
  assert json.loads(capsys.readouterr().out)["exact_match"] == 100.0
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr("sys.stdout", terminal)
  assert cli.run(command) == 0
  assert "exact_match    100.0  100.0 to 100.0\n" in terminal.getvalue()
