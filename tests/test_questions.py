"""Question sets by name: what is read, skipped and refused, and how a set is split."""

import pytest

from realm_jax.data.questions import Question, is_dev, read_questions, split_name

LINES = (
  '{"question": " who? ", "answer": ["Ann", "Café"], "passage": "p"}\n\n'
  '{"question": "[MASK] is where?", "answer": "here"}\n'
)
QUESTIONS = [Question("who?", ("Ann", "Café")), Question("[MASK] is where?", ("here",))]


def write(path, text):
  path.write_text(text, encoding="utf-8")
  return str(path)


def test_reads_a_file(tmp_path):
  assert read_questions(write(tmp_path / "x.jsonl", LINES)) == (QUESTIONS, False, "")


def test_faults_are_counted_and_named(tmp_path):
  bad = '{"question": "a"}\n{\n{"question": "", "answer": "x"}\n{"question": "b", "answer": []}\n{"question": "c"}\n'
  questions, _, skipped = read_questions(write(tmp_path / "x.jsonl", bad + LINES))
  assert questions == QUESTIONS
  assert skipped == (
    "3 with no answer (lines 1, 4, 5); 1 with no valid JSON (line 2); 1 with no text as question (line 3)"
  )


def test_strict_refuses_the_first_fault(tmp_path):
  path = write(tmp_path / "x.jsonl", LINES + "{\n")
  with pytest.raises(ValueError) as error:
    read_questions(path, strict=True)
  assert str(error.value) == f"{path}, line 4: a record with no valid JSON; mend it, or leave out --strict to skip it"


def test_a_question_asked_twice_is_one_with_all_answers(tmp_path):
  lines = "who?\t['Ann', 'Bob']\nwhere?\there\n who? \t['Eve', 'Ann']\nWho?\t['Ann']\n"
  questions, _, skipped = read_questions(write(tmp_path / "x.tsv", lines))
  assert questions == [
    Question("who?", ("Ann", "Bob", "Eve")),
    Question("where?", ("here",)),
    Question("Who?", ("Ann",)),
  ]
  assert skipped == "1 with a question asked before, whose answers were added to the first's (line 3)"


def test_annotated_evidence_comes_with_the_question(tmp_path):
  one, other, none = (
    f'{{"question": "{question}", "answer": "x"{annotated}}}'
    for question, annotated in [("a?", ', "annotated": "7"'), ("a?", ', "annotated": ["9#2", "7"]'), ("b?", "")]
  )
  questions = read_questions(write(tmp_path / "x.jsonl", "\n".join([one, other, none]))).questions
  assert questions == [Question("a?", ("x",), ("7", "9#2")), Question("b?", ("x",))]


@pytest.mark.parametrize("name", ["curatedtrec.train.jsonl", "CuratedTrec-test.jsonl", "curated_trec.jsonl"])
def test_curated_trec_has_regular_expressions(tmp_path, name):
  lines = '{"question": "when?", "answer": ["19\\\\d\\\\d"]}\n{"question": "where?", "answer": ["(a", "b"]}\n'
  questions, answers_are_regex, skipped = read_questions(write(tmp_path / name, lines))
  assert (questions, answers_are_regex) == ([Question("when?", (r"19\d\d",))], True)
  assert skipped == "1 with an invalid regular expression (line 2)"


def test_other_sets_have_text_unless_it_is_said(tmp_path):
  path = write(tmp_path / "x.jsonl", '{"question": "where?", "answer": ["(a"]}\n')
  assert read_questions(path).questions == [Question("where?", ("(a",))]
  with pytest.raises(ValueError, match="holds no question: 1 with an invalid regular expression"):
    read_questions(path, regex=True)


@pytest.mark.parametrize("lines", ["\n\n", "", "question\tanswers\n"])
def test_refuses_a_file_without_questions(tmp_path, lines):
  with pytest.raises(ValueError, match=r"x.tsv holds no question: it is empty; expected .jsonl with"):
    read_questions(write(tmp_path / "x.tsv", lines))


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("none.jsonl", "no input file at .*none.jsonl"),
    ("x.jsonl:test", r"a file has no test split of its own \(.*x.jsonl:test\): name the file of the test questions"),
    ("x.jsonl:validation", "has the unknown split 'validation'; the splits are train, dev, test, all"),
    ("x.txt", "x.txt is no file of questions that is known by its name; expected .jsonl"),
  ],
)
def test_refuses_what_it_does_not_know(tmp_path, name, message):
  write(tmp_path / "x.jsonl", LINES)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    read_questions(f"{tmp_path}/{name}")


def test_split_name():
  assert split_name("a/b.jsonl:dev") == ("a/b.jsonl", "dev")
  assert split_name("nq_open") == ("nq_open", "all")
  assert split_name("gs://bucket/x.jsonl") == ("gs://bucket/x.jsonl", "all")


def test_train_and_dev_are_the_whole(tmp_path):
  path = write(tmp_path / "x.tsv", "".join(f"what is number {i}?\tx\n" for i in range(2000)))
  whole, train, dev = (read_questions(path + split).questions for split in ("", ":train", ":dev"))
  assert sorted(train + dev) == sorted(whole) and not set(train) & set(dev)
  assert abs(len(dev) - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5
  assert read_questions(f"{path}:all").questions == whole
  assert train == [q for q in whole if q in set(train)]  # in the file's order


def test_a_split_without_questions_is_refused(tmp_path):
  path = write(tmp_path / "x.tsv", "who?\tAnn\n")
  empty = "train" if is_dev(["who?"])[0] else "dev"
  with pytest.raises(ValueError, match=f"none of the questions of .*x.tsv falls into the split '{empty}'; take .*:all"):
    read_questions(f"{path}:{empty}")


# FarmHash64 (Pike 2014) for texts of up to 64 bytes, in whole numbers.
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
FULL = 2**64 - 1


def rotated(x: int, by: int) -> int:
  x &= FULL
  return (x >> by | x << 64 - by) & FULL


def shifted(x: int) -> int:
  x &= FULL
  return x ^ x >> 47


def joined(u: int, v: int, factor: int) -> int:
  return shifted((v ^ shifted((u ^ v) * factor)) * factor) * factor & FULL


def farmhash64(text: bytes) -> int:
  n, factor = len(text), K2 + 2 * len(text)

  def at(i: int, size: int = 8) -> int:
    return int.from_bytes(text[i : i + size], "little")

  def halves(a, b, c, d):
    return (rotated(a + b, 43) + rotated(c, 30) + d) & FULL, (a + rotated(b + K2, 18) + c) & FULL

  if n == 0:
    return K2
  if n < 4:
    return shifted((text[0] + (text[n // 2] << 8)) * K2 & FULL ^ (n + (text[-1] << 2)) * K0 & FULL) * K2 & FULL
  if n < 8:
    return joined(n + (at(0, 4) << 3), at(n - 4, 4), factor)
  if n <= 16:
    a, b = at(0) + K2 & FULL, at(n - 8)
    return joined((rotated(b, 37) * factor + a) & FULL, (rotated(a, 25) + b) * factor & FULL, factor)
  if n <= 32:
    return joined(*halves(at(0) * K1 & FULL, at(8), at(n - 8) * factor & FULL, at(n - 16) * K2 & FULL), factor)
  a = at(0) * K2 & FULL
  y, rest = halves(a, at(8), at(n - 8) * factor & FULL, at(n - 16) * K2 & FULL)
  z = joined(y, rest, factor)
  e, f, g, h = at(16) * factor & FULL, at(24), (y + at(n - 32)) * factor & FULL, (z + at(n - 24)) * factor & FULL
  return joined(rotated(e + f, 43) + rotated(g, 30) + h & FULL, e + rotated(f + a, 18) + g & FULL, factor)


def test_split_is_googles():
  """`tf.strings.to_hash_bucket_fast(question, 100000)` modulo 10, which is FarmHash64's remainder."""
  import tensorflow as tf  # noqa: PLC0415

  # The example in TensorFlow's documentation of the op.
  assert [farmhash64(text) % 3 for text in (b"Hello", b"TensorFlow", b"2.x")] == [0, 2, 2]
  questions = [f"{'who was the first to see no. ' * 3}{i}?"[-length:] for i in range(40) for length in range(1, 65)]
  bucket = [farmhash64(q.encode()) % 100_000 for q in questions]
  assert tf.strings.to_hash_bucket_fast(questions, 100_000).numpy().tolist() == bucket
  assert is_dev(questions).tolist() == [b % 10 == 0 for b in bucket]
  assert 150 < sum(is_dev(questions)) < 400
