"""Questions: what is read and what is refused."""

import gzip
import lzma

import pytest

from realm_jax.data.questions import Question, read_questions

LINES = (
  b'{"question": " who? ", "answer": ["Ann", "Caf\xc3\xa9"], "passage": "p"}\n\n'
  b'{"question": "[MASK] is where?", "answer": "here"}\n'
)
QUESTIONS = [Question("who?", ("Ann", "Café")), Question("[MASK] is where?", ("here",))]


@pytest.mark.parametrize(
  ("name", "compress"), [("x.jsonl", bytes), ("x.jsonl.gz", gzip.compress), ("x.jsonl.xz", lzma.compress)]
)
def test_reads_plain_and_compressed(tmp_path, name, compress):
  (tmp_path / name).write_bytes(compress(LINES))
  assert read_questions(tmp_path / name) == QUESTIONS


@pytest.mark.parametrize(
  ("line", "reason"),
  [
    (b"{", "Expecting property name"),
    (b'{"question": "caf\xe9"}', "can't decode byte 0xe9"),
    (b"[1]", "JSON that is no object"),
    (b'{"answer": ["x"]}', 'no text in "question"'),
    (b'{"question": " ", "answer": ["x"]}', 'no text in "question"'),
    (b'{"question": 1, "answer": ["x"]}', 'no text in "question"'),
    (b'{"question": "who?"}', 'no text in "answer"'),
    (b'{"question": "who?", "answer": []}', 'no text in "answer"'),
    (b'{"question": "who?", "answer": ["x", " "]}', 'no text in "answer"'),
    (b'{"question": "who?", "answer": ["x", 1]}', 'no text in "answer"'),
    (b'{"question": "who?", "answer": {"x": 1}}', 'no text in "answer"'),
  ],
)
def test_names_the_first_bad_line(tmp_path, line, reason):
  (tmp_path / "x.jsonl").write_bytes(LINES + line + b"\n{\n")
  with pytest.raises(ValueError) as error:
    read_questions(tmp_path / "x.jsonl")
  message = str(error.value)
  assert message.startswith(f"{tmp_path / 'x.jsonl'}, line 4: ")
  assert reason in message
  assert message.endswith('; expected {"question": text, "answer": [text, ...]}')


def test_refuses_a_file_without_questions(tmp_path):
  (tmp_path / "x.jsonl").write_text("\n\n")
  message = r'x.jsonl holds no question; expected \{"question": text, "answer": \[text, ...\]\} a line'
  with pytest.raises(ValueError, match=message):
    read_questions(tmp_path / "x.jsonl")


def test_refuses_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match="no input file at .*none.jsonl"):
    read_questions(tmp_path / "none.jsonl")


def test_refuses_a_file_that_is_cut_off(tmp_path):
  (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(LINES)[:-4])
  message = r"x.jsonl.gz can't be decompressed after line \d .*; is it cut off\? Fetch it again"
  with pytest.raises(ValueError, match=message):
    read_questions(tmp_path / "x.jsonl.gz")
