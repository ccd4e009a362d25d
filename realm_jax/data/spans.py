"""Finds the salient spans of a passage, which are the dates and named entities that REALM masks.

The paper masks what a BERT tagger trained on CoNLL-2003 called an entity and what a regular expression called a
date (section 3.4 of Guu et al. 2020). Neither was released. Here dates always come by rule; entities come from a
tagger of your choice.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

# Stored as an index into this tuple (uint8): append, never reorder.
KINDS = ("date", "entity", "person", "location", "organization", "misc")


class Span(NamedTuple):
  """A named entity or a date."""

  start: int  # in characters of the text
  end: int  # exclusive
  kind: str  # one of KINDS


class Tagger(Protocol):
  """Finds named entities."""

  name: str  # goes into corpus.json; changes whenever the spans would

  def tag(self, texts: Sequence[str]) -> list[list[Span]]:
    """Returns the named entities of each text, sorted, without overlaps."""
    ...


def make_tagger(name: str) -> Tagger:
  """Builds the tagger called "rules", "spacy", "spacy:MODEL" or "none" (dates only)."""
  if name == "rules":
    return RuleTagger()
  if name == "none":
    return NoTagger()
  if name == "spacy":
    return SpacyTagger()
  if name.startswith("spacy:") and name != "spacy:":
    return SpacyTagger(name.removeprefix("spacy:"))
  raise ValueError(
    f"unknown tagger {name!r}; expected 'rules', 'spacy', 'spacy:MODEL' (such as 'spacy:en_core_web_trf') "
    "or 'none' (dates only)"
  )


def salient_spans(texts: Sequence[str], tagger: Tagger) -> list[list[Span]]:
  """Returns the dates and the tagger's entities of each text, sorted, without overlaps.

  Of two that overlap a date wins, then the longer, then the earlier.

  >>> text = "In Paris, Marie Curie found radium in December 1898."
  >>> [(span.kind, text[span.start : span.end]) for span in salient_spans([text], make_tagger("rules"))[0]]
  [('entity', 'Paris'), ('entity', 'Marie Curie'), ('date', 'December 1898')]
  """
  entities = tagger.tag(texts)
  return [_without_overlaps(find_dates(text) + found) for text, found in zip(texts, entities, strict=True)]


def _without_overlaps(spans: Sequence[Span]) -> list[Span]:
  kept: list[Span] = []
  for span in sorted(spans, key=lambda s: (s.kind != "date", s.start - s.end, s.start)):
    place = bisect.bisect(kept, span)
    if (place == 0 or kept[place - 1].end <= span.start) and (place == len(kept) or span.end <= kept[place].start):
      kept.insert(place, span)
  return kept


_MONTHS = "January February March April May June July August September October November December"
_MONTH = rf"(?:{_MONTHS.replace(' ', '|')}|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
_DASH = r"\s?[-–—]\s?"
_DAY = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?\b"
_DAYS = rf"{_DAY}(?:{_DASH}{_DAY})?"
_YEAR = r"(?:1\d{3}|20\d{2})(?!\d)"
_ERA = r"(?:BCE?\b|CE\b|AD\b|B\.\s?C\.(?:\s?E\.)?|A\.\s?D\.|C\.\s?E\.)"
_ANY_YEAR = rf"(?:\d{{1,4}}\s?{_ERA}|{_YEAR})"
_ORDINAL = (
  r"(?:\d{1,2}(?:st|nd|rd|th)|(?i:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|"
  r"twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|twent(?:ieth|y-first)))"
)
_CENTURY = (
  rf"{_ORDINAL}(?:(?:\s(?:and|or|to)\s|{_DASH}){_ORDINAL})?"
  rf"[-\s](?i:centur(?:y|ies)|millenni(?:um|a))\b(?:\s{_ERA})?"
)
_UNIT = (
  r"(?:[KCFVWm]|[kcm]m|k?g|lbs?|ft|mi|ha|[kMG]?Hz|[kMG]?W|[kMGT]B|bits?|bytes|degrees|per|percent|met(?:er|re)s?|"
  r"kilomet(?:er|re)s?|miles?|feet|foot|yards?|inches|acres|hectares|square|cubic|tons?|tonnes|pounds|kilograms|"
  r"grams|dollars|euros|francs|hours|minutes|seconds|days|weeks|months|years|people|persons|inhabitants|residents|"
  r"men|women|children|soldiers|troops|students|members|species|ships|aircraft|times|votes|copies|words|pages|"
  r"million|billion)"
)
_DIGIT_DATES = (
  rf"{_YEAR}-\d\d-\d\d\b",
  rf"{_DAYS}\s(?:of\s)?{_MONTH}(?:,?\s(?:of\s)?{_ANY_YEAR})?",
  _CENTURY,
  rf"(?<![.,$£€])(?:1\d|20|[1-9])\d0['’]?s\b(?:\s{_ERA})?",
  rf"(?<![.,])[1-9](?:\d{{0,4}}|\d?,\d{{3}})(?:{_DASH}\d{{1,4}})?\s?{_ERA}",
  # A bare number is a year unless its surroundings make it a quantity, a price or a code.
  r"(?:(?<![.,:$£€¥#/+=-])|(?<=\b(?:pre|mid)-)|(?<=\bpost-)|(?<=\bc\.))"
  r"(?<!than )(?<!over )(?<!least )(?<!nearly )(?<!almost )"
  rf"{_YEAR}(?:{_DASH}{_YEAR}|[-–/]\d\d(?!\d))?"
  rf"(?!\w|[.,:/]\d|{_DASH}\d|-(?!present)\w|\s?[%°×]|[\s-]{_UNIT}\b|\s\d{{3}}\b)",
)
_LETTER_DATES = (
  rf"{_MONTH}\s{_DAYS}(?!,\d|\.\d)(?:,?\s{_ANY_YEAR})?",
  rf"(?:{_MONTH}{_DASH})?{_MONTH},?\s(?:of\s)?{_ANY_YEAR}(?:[-–/]\d\d\b)?",
  rf"(?i:spring|summer|autumn|fall|winter)\s(?:of\s)?{_ANY_YEAR}(?:[-–/]\d\d\b)?",
  _CENTURY,
  rf"(?:AD|A\.D\.|CE)\s?[1-9]\d{{0,3}}(?:{_DASH}\d{{1,4}})?\b(?![.,]\d)",
  r"['’][1-9]0s\b",
)
# The look-aheads for the first character only spare the engine most of the alternatives.
_DATE = re.compile(
  rf"(?<!\w)(?:(?=\d)(?:{'|'.join(_DIGIT_DATES)})|(?=[ACDEFJMNOSTWaefnstw'’])(?:{'|'.join(_LETTER_DATES)}))"
)


def find_dates(text: str) -> list[Span]:
  """Finds days, months and seasons with a year, years, eras, decades and centuries, by rule.

  A range of years ("1914–1918") is one date, because one half gives the other away; so is a range of days.
  "From 1914 to 1918" and a range of full dates are two. A bare number is a year from 1000 to 2099 only.
  """
  return [Span(m.start(), m.end(), "date") for m in _DATE.finditer(text)]


class NoTagger:
  """Finds no named entities, so that only dates are salient."""

  name = "none"

  def tag(self, texts: Sequence[str]) -> list[list[Span]]:
    return [[] for _ in texts]


# The words that open most sentences of English Wikipedia, split in two. These aren't part of a name ("In Paris").
_FUNCTION_WORDS = frozenset(
  """
  a about above according across additionally after afterwards again against all almost along already also
  alternatively although always among an and another any anyone apart approximately are around as at because before
  being below besides between both but by can certain consequently currently despite did do does due during each
  earlier either eventually every everyone except few finally following for formerly four from further furthermore
  given had has have he hence her here his historically how however if in indeed initially instead is it its just
  known later least less let like likewise many meanwhile more moreover most much my near nearly neither nevertheless
  no none nonetheless nor not now numerous of often on once one only or originally other others otherwise our over
  owing perhaps previously prior quite rather recently regarding roughly same see several shall she should similarly
  since so some sometimes soon starting still subsequently such than that the their them then there thereafter
  therefore these they this those though three through throughout thus to today together too traditionally two
  typically under unless unlike until up upon used using usually various very was we were what when whenever where
  whereas whether which while who whose why with within without would yet you your
  """.split()
)
# These are no name alone, but may begin one ("New York").
_COMMON_WORDS = frozenset(
  """
  agriculture aside ancient based basic beginning born changes common contemporary critics current date different early
  eight even examples first five former general high historians historical history important international large
  larger last late little local long main major members men mixed modern natural new next nine non notable note
  nothing part people personal physical post pre previous pseudo public recent religious scholars second semi seven
  similar six small somebody speakers special students studies subsequent ten third total traditional transport twelve
  twenty typical users well will women works young
  """.split()
)
_CALENDAR = f"{_MONTHS} Monday Tuesday Wednesday Thursday Friday Saturday Sunday AD A.D. BC B.C. BCE B.C.E. CE C.E."
_NO_NAMES = _FUNCTION_WORDS | _COMMON_WORDS | frozenset(_CALENDAR.lower().split())
# These are no part of the name that they precede.
_NOT_FIRST = frozenset(
  "of for the & The Sir President Senator Professor Mr Mr. Mrs Mrs. Ms Ms. Dr Dr. Prof. Rev. Gen. Col. Lt. Maj. Capt. "
  "Gov. Sen.".split()
)
# A word with such an end that opens a sentence is rarely a name.
_COMMON_END = re.compile(
  r"(?:ly|ed|ing|able|tions?|ments?|ness|it(?:y|ies)|ists|isms?|ers|ors|ics|ive|ous|ical|ific|ional|[ae]nces?|graphy|"
  r"ology|als|ures)$"
)

_UPPER = "[" + "".join(c for c in map(chr, range(0x3000)) if c.isupper()) + "]"
_ABBREVIATION = (
  r"(?:Dr|Mrs?|Ms|St|Ste|Mt|Ft|Prof|Gen|Lt|Col|Capt|Sgt|Maj|Adm|Rev|Gov|Sen|Rep|Hon|Jr|Sr|Bros|Inc|Ltd|Co|Corp)\."
)
_INITIALS = rf"{_UPPER}\.(?:-?{_UPPER}\.)*"
_WORD = (
  rf"(?:(?:[dl]['’]|[ae]l-|[ei])?{_UPPER}\w*"
  rf"(?:['’ʻʼ](?!(?:s|t|re|ve|ll|d|m)\b)\w+|[-‐](?:[a-zà-ÿ]{{1,4}}-){{0,2}}(?:{_UPPER}|\d)\w*|&\w+)*"
  r"(?!\w|['’]t\b|\$))"
)
_NUMBER = r"\d{1,3}(?:-\d{3})?(?![\w%]|[.,:–-]\d|['’]s\b)"
_PARTICLE = (
  r"(?:of(?: the)?|for(?: the)?|de(?: la| las| los| le)?|van(?: de[rn]?)?|von(?: der)?|del|della|dell[oe]|d[aiou]s?|"
  r"des|den|der|du|l[aeo]s?|e?l|al|bin|ibn|ben|zu[rm]?|und|y|et|af|av|ter?|ten|sur|upon|&)"
)
_INITIAL = re.compile(rf"{_UPPER}\.")
# What follows a sentence that is nothing but a name or a word.
_IS_HEADING = re.compile(r"[.:]\s|[.:]?(?:\n|$)")
_LOWER_WORD = re.compile(r"\b[^\W\d_]+\b")
_NAME = re.compile(
  rf"(?<![\w'’&])(?<!\d-)(?:(?:v[ao]n|de|ibn|bin) (?:de[rn]? |la )?)?(?:{_ABBREVIATION}|{_INITIALS}|{_WORD})"
  rf"(?:[ \xa0](?:{_ABBREVIATION}|{_INITIALS}|(?:{_PARTICLE} )?{_WORD}|{_NUMBER})){{0,15}}"
)


class RuleTagger:
  """Finds runs of capitalised words; it needs no download and gives every span the kind "entity"."""

  name = "rules-1"

  def tag(self, texts: Sequence[str]) -> list[list[Span]]:
    return [_find_names(text) for text in texts]


def _find_names(text: str) -> list[Span]:
  names, doubtful = [], []
  proper: set[str] = set()  # words that are capitalised for another reason than to open a sentence
  for start, words, opens in _capitalised_runs(text):
    if opens and _IS_HEADING.match(text, start + len(" ".join(words))):
      continue  # masked, it leaves nothing of its sentence
    num_words = len(words)
    while words and (words[0] in _NOT_FIRST or opens and words[0].lower() in _FUNCTION_WORDS):
      start += len(words.pop(0)) + 1
    if not any(_is_proper(word) for word in words):
      continue
    name = " ".join(words)
    if _INITIAL.fullmatch(words[-1]):
      name = name[:-1]  # "vitamin B." ends a sentence
    span = Span(start, start + len(name), "entity")
    if opens and num_words == 1 and not name.isupper():
      doubtful.append((name, span))
    else:
      names.append(span)
      proper.update(words)
  if doubtful:
    lower_words = set(_LOWER_WORD.findall(text))
    names += [
      span for name, span in doubtful if name in proper or not (name.lower() in lower_words or _COMMON_END.search(name))
    ]
  return sorted(names)


def _capitalised_runs(text: str) -> Iterator[tuple[int, list[str], bool]]:
  """Yields start, words, and whether the first word may be capitalised only because it opens a sentence."""
  for match in _NAME.finditer(text):
    start, words = match.start(), match[0].replace("\xa0", " ").split(" ")
    if "." in match[0]:
      # Abbreviations end sentences too: "from the U.S. The army" holds two runs.
      for n in range(len(words) - 1, 0, -1):
        if words[n - 1][-1] == "." and words[n].lower() in _FUNCTION_WORDS:
          yield start + len(" ".join(words[:n])) + 1, words[n:], True
          words = words[:n]
    yield start, words, _opens_sentence(text, start)


def _opens_sentence(text: str, start: int) -> bool:
  before = start - 1
  while before >= 0 and text[before] in " \"'“”‘’«»()[]":
    before -= 1
  return before < 0 or text[before] in ".!?…\n"


def _is_proper(word: str) -> bool:
  if word.islower() or word[0].isdigit() or len(word.rstrip(".")) == 1:
    return False
  return word.lower() not in _NO_NAMES


# Labels of OntoNotes and of CoNLL; the rest (NORP, EVENT, WORK_OF_ART, MISC, ...) is "misc".
_SPACY_KIND = {"PERSON": "person", "PER": "person", "ORG": "organization"}
_SPACY_KIND |= dict.fromkeys(("GPE", "LOC", "FAC"), "location")
_SPACY_BATCH = 32  # passages: with the default of 1,000 a process needs a gigabyte
_NOT_SALIENT = frozenset("DATE TIME CARDINAL ORDINAL PERCENT MONEY QUANTITY".split())


class SpacyTagger:
  """Finds the names that a spaCy model finds, without "the" before and "'s" behind them.

  It is sent to other processes by the model's name; each loads the model once.
  """

  def __init__(self, model: str = "en_core_web_sm"):
    self._model = model
    self.name = f"spacy:{model}-{_load_spacy(model).meta['version']}"

  def tag(self, texts: Sequence[str]) -> list[list[Span]]:
    docs = _load_spacy(self._model).pipe(texts, batch_size=_SPACY_BATCH)
    return [
      [span for e in doc.ents if (span := _from_spacy(doc.text, e.start_char, e.end_char, e.label_))] for doc in docs
    ]


@functools.cache
def _load_spacy(model: str):
  try:
    import spacy  # noqa: PLC0415 an extra
  except ImportError as error:
    raise ImportError(
      f"the tagger 'spacy:{model}' needs spaCy and a model; run: "
      f'pip install "realm_jax[ner]" && python -m spacy download {model}'
    ) from error
  try:
    nlp = spacy.load(model)
  except OSError as error:
    raise ImportError(f"spaCy can't load the model {model!r}; run: python -m spacy download {model}") from error
  if "ner" not in nlp.pipe_names:
    raise ValueError(f"the spaCy model {model!r} has no 'ner' pipe, only {nlp.pipe_names}; choose another")
  nlp.select_pipes(enable=[p for p in ("transformer", "tok2vec", "ner") if p in nlp.pipe_names])
  return nlp


def _from_spacy(text: str, start: int, end: int, label: str) -> Span | None:
  name = re.sub(r"['’]s?$", "", text[start:end].rstrip())
  end = start + len(name)
  start = end - len(re.sub(r"^[Tt]he\s+", "", name.lstrip()))
  return Span(start, end, _SPACY_KIND.get(label, "misc")) if label not in _NOT_SALIENT and start < end else None
