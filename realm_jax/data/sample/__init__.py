"""The sample encyclopedia: passages and questions that come with the package."""

import pathlib

_HERE = pathlib.Path(__file__).parent
SAMPLE_PASSAGES = _HERE / "passages.jsonl"
SAMPLE_QUESTIONS = {split: _HERE / f"questions.{split}.jsonl" for split in ("train", "dev", "test")}
