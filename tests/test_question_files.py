"""Files of questions: their forms, and what becomes of records that are none."""

import gzip
import json
import lzma
import random

import pytest

from realm_jax.data.question_files import Record, read_records

ANN = ("who?", ("Ann", "Café"))
HERE = ("where, exactly?", ("here",))
JSONL = '{"question": " who? ", "answer": ["Ann", "Café"]}\n\n{"question": "where, exactly?", "answers": "here"}\n'
JSON = json.dumps(
  [{"question": "who?", "answers": ["Ann", "Café"], "ctxs": [{}]}, {"question": HERE[0], "answer": ["here"]}]
)
TSV = "who?\t['Ann', \"Café\"]\n\nwhere, exactly?\there\r\n"
CSV = """question,answers\n"who?","['Ann', 'Café']"\n"where, exactly?",here\n"""
TEXT = {"x.jsonl": JSONL, "x.json": JSON, "x.tsv": TSV, "x.csv": CSV, "dpr.qa.csv": TSV}


def read(path, data) -> list[Record]:
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return list(read_records(path))


def record(path, line: str) -> Record:
  (only,) = read(path, line)
  return only


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_every_form_plain_and_compressed(tmp_path, name, suffix, compress):
  records = read(tmp_path / f"{name}{suffix}", compress(TEXT[name].encode()))
  assert [(r.question, r.answers) for r in records] == [ANN, HERE]
  assert not any(r.fault for r in records)
  assert [r.line for r in records] == {"x.json": [1, 1], "x.csv": [2, 3]}.get(name, [1, 3])


def test_a_byte_order_mark_is_no_text(tmp_path):
  assert record(tmp_path / "x.jsonl", "\ufeff" + JSONL.split("\n")[0])[1:3] == ANN
  assert record(tmp_path / "x.tsv", "\ufeffquestion\tanswer\n" + TSV.split("\n")[0])[1:3] == ANN


@pytest.mark.parametrize(
  ("line", "fault"),
  [
    (b"{", "no valid JSON"),
    (b"[" * 100_000, "no valid JSON"),
    (b'{"question": "caf\xe9", "answer": ["x"]}', "bytes that are not UTF-8"),
    (b"[1]", "JSON that is no object"),
    (b'{"answer": ["x"]}', "no text as question"),
    (b'{"question": " ", "answer": ["x"]}', "no text as question"),
    (b'{"question": 1, "answer": ["x"]}', "no text as question"),
    (b'{"question": "who?"}', "no answer"),
    (b'{"question": "who?", "answer": []}', "no answer"),
    (b'{"question": "who?", "answer": " "}', "no answer"),
    (b'{"question": "who?", "answer": ["x", " "]}', "an empty answer"),
    (b'{"question": "who?", "answer": ["x", 1]}', "answers that are no text"),
    (b'{"question": "who?", "answer": {"x": 1}}', "answers that are no text"),
    (b'{"question": "who?", "answer": ["\\u0000"]}', "control characters, so no text"),
    (b'{"question": "\\ud800?", "answer": ["x"]}', "control characters, so no text"),
    (
      b'{"question": "a", "answer": "x", "annotated": [3]}',
      '"annotated" that is no list of ids',
    ),
  ],
)
def test_faults_of_json(tmp_path, line, fault):
  assert record(tmp_path / "x.jsonl", line + b"\n") == Record(1, fault=fault)


@pytest.mark.parametrize(
  ("line", "question", "answers"),
  [
    ('"who said ""no""?"\t"[\'Ann\', \'Bob\']"', 'who said "no"?', ("Ann", "Bob")),  # as csv writes it
    ("\"no\" was said by whom\t['Ann']", '"no" was said by whom', ("Ann",)),  # quotation marks that quote no column
    ('"no was said by whom\tAnn', '"no was said by whom', ("Ann",)),
    ("who, then?\t['Ann', ]", "who, then?", ("Ann",)),
    ("who?\t['O\\'Neill', \"Ann B\", '\\\\d']", "who?", ("O'Neill", "Ann B", r"\d")),
    ("when?\t['19\\d\\d']", "when?", (r"19\d\d",)),  # no escape of Python's
    ("who?\tthe [first] one", "who?", ("the [first] one",)),
    ("who?,Ann", "who?", ("Ann",)),
  ],
)
def test_columns(tmp_path, line, question, answers):
  assert record(tmp_path / "x.tsv", line) == Record(1, question, answers)


@pytest.mark.parametrize(
  ("line", "fault"),
  [
    ("who?", "1 column instead of 2"),
    ("who?\tAnn\tBob", "3 columns instead of 2"),
    ("\t['Ann']", "no text as question"),
    ("who?\t", "no answer"),
    ("who?\t[]", "no answer"),
    ("who?\t['']", "no answer"),
    ("who?\t['Ann', '']", "an empty answer"),
    ("who?\t['Ann', 3]", "answers that begin with [ and are no list of strings"),
    ("who?\t['Ann'", "answers that begin with [ and are no list of strings"),
    ("who?\t['Ann' 'Bob']", "answers that begin with [ and are no list of strings"),
    ("who?\t[__import__('os').getcwd()]", "answers that begin with [ and are no list of strings"),
    ("who?\t['\\x']", "answers that begin with [ and are no list of strings"),
    ("who?\t" + "[" * 50_000, "answers that begin with [ and are no list of strings"),
    ("who?\t['a" + " " * 50_000, "answers that begin with [ and are no list of strings"),
    ("who?\t['a'" + " " * 50_000 + "x", "answers that begin with [ and are no list of strings"),
  ],
)
def test_faults_of_columns(tmp_path, line, fault):
  assert record(tmp_path / "x.tsv", line) == Record(1, fault=fault)


def test_dpr_s_positive_passages_are_annotated(tmp_path):
  positive = [{"passage_id": "8", "title": "T"}, {"psg_id": 9}, {"title": "without id"}, {"passage_id": None}, "10"]
  entries = [
    {"question": "a?", "answers": ["x"], "positive_ctxs": positive, "negative_ctxs": [{"passage_id": "11"}]},
    {"question": "b?", "answers": ["x"], "annotated": "7", "positive_ctxs": positive[:1]},
    {"question": "c?", "answers": ["x"], "positive_ctxs": {"passage_id": "8"}},
  ]
  records = read(tmp_path / "nq-train.json", json.dumps(entries))
  assert [r.annotated for r in records] == [("8", "9"), ("7", "8"), ()] and not any(r.fault for r in records)


def test_a_list_names_the_line_of_a_fault(tmp_path):
  records = read(tmp_path / "x.json", json.dumps([{"question": "who?", "answers": ["Ann"]}, 3, {}], indent=1))
  assert records == [
    Record(2, "who?", ("Ann",)),
    Record(8, fault="JSON that is no object"),
    Record(9, fault="no text as question"),
  ]
  assert read(tmp_path / "x.json", " [ ] \n") == []


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (JSON[:-1], "line 1: the list doesn't end as it should; is the file cut off"),
    (JSON[:-20], r"line 1: no valid JSON \(.*\); is the file cut off\? Fetch it again"),
    (JSON + "]", "the list doesn't end as it should"),
    ("[", "no valid JSON"),
    ("[" * 100_000, "no valid JSON"),
    ('{"question": "who?"}', r"doesn't begin with \[, so it is no list"),
    ("", r"doesn't begin with \["),
    (b"[\xff]", "holds bytes that are not UTF-8"),
  ],
)
def test_a_list_that_is_none_is_refused(tmp_path, data, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path / "x.json", data)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("name", TEXT)
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path, name, suffix, compress):
  with pytest.raises(ValueError, match="can't be decompressed"):
    read(tmp_path / f"{name}{suffix}", compress(TEXT[name].encode())[:-4])


def test_fuzz(tmp_path):
  """Damaged files give records, faults or a ValueError; every line is accounted for."""
  rng = random.Random(0)
  alphabet = [
    b"\t",
    b"\n",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b"\\",
    b"\x00",
    b"\xff",
    b"\xf0\x9f\x98\x80",
    b"u",
  ]
  for trial in range(600):
    name = rng.choice(list(TEXT))
    data = bytearray((TEXT[name] * 2).encode())
    for _ in range(rng.randint(1, 6)):
      at = rng.randrange(len(data))
      action = rng.randrange(4)
      if action == 0:
        data[at : at + rng.randint(1, 9)] = b""
      elif action == 1:
        data[at:at] = rng.choice(alphabet)
      elif action == 2:
        data[at] ^= 1 << rng.randrange(8)
      else:
        del data[at:]
      data = data or bytearray(b"x")
    compressed = gzip.compress(bytes(data)) if trial % 3 == 0 else None
    path = tmp_path / (f"{name}.gz" if compressed else name)
    try:
      records = read(path, compressed or bytes(data))
    except ValueError as error:
      assert str(path) in str(error)
      continue
    for r in records:
      assert bool(r.fault) != bool(r.question and r.answers and all(a.strip() for a in r.answers))
    if not name.endswith("json"):
      lines = bytes(data).split(b"\n")
      lines = {i for i, line in enumerate(lines, 1) if line.strip()}
      assert {r.line for r in records} <= lines and len(lines) - len(records) in (0, 1)  # 1: names of columns
