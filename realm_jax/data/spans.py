"""Finds the salient spans of a passage, which are the dates and named entities that REALM masks.

The paper masks what a BERT tagger trained on CoNLL-2003 called an entity and what a regular expression called a
date (section 3.4 of Guu et al. 2020). Neither was released. Here dates always come by rule; entities come from a
tagger of your choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

# Stored as an index into this tuple (uint8): append, never reorder.
KINDS = ("date", "entity", "person", "location", "organization", "misc")


class Span(NamedTuple):
  start: int  # in characters of the text
  end: int  # exclusive
  kind: str  # one of KINDS


class Tagger(Protocol):
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
  """
  entities = tagger.tag(texts)
  return [_without_overlaps(find_dates(text) + found) for text, found in zip(texts, entities, strict=True)]


def _without_overlaps(spans: Sequence[Span]) -> list[Span]:
  kept: list[Span] = []
  for span in sorted(spans, key=lambda s: (s.kind != "date", s.start - s.end, s.start)):
    if all(span.end <= other.start or other.end <= span.start for other in kept):
      kept.append(span)
  return sorted(kept)


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
# The look-aheads for the first character only spare the engine most of the alternatives.
_DATE = re.compile(
  r"(?<!\w)(?:(?=\d)(?:"
  + "|".join(
    (
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
  )
  + r")|(?=[ACDFJMNOSWaefnstw'’])(?:"
  + "|".join(
    (
      rf"{_MONTH}\s{_DAYS}(?!,\d|\.\d)(?:,?\s{_ANY_YEAR})?",
      rf"(?:{_MONTH}{_DASH})?{_MONTH},?\s(?:of\s)?{_ANY_YEAR}(?:[-–/]\d\d\b)?",
      rf"(?i:spring|summer|autumn|fall|winter)\s(?:of\s)?{_ANY_YEAR}(?:[-–/]\d\d\b)?",
      _CENTURY,
      rf"(?:AD|A\.D\.|CE)\s?[1-9]\d{{0,3}}(?:{_DASH}\d{{1,4}})?\b(?![.,]\d)",
      r"['’][1-9]0s\b",
    )
  )
  + "))"
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


# The words that open most sentences of English Wikipedia without being names.
_OPENERS = frozenset(
  """
  a about above accordingly according across additional additionally after afterwards again against all almost
  along already also alternatively although always among an ancient and another any anyone apart approximately
  are around as at based basic because before beginning being below besides between beyond born both but by can
  certain changes common commonly consequently contemporary critics current currently despite did different do
  does due during each earlier early eight eventually every everyone examples except few finally first five
  following for former formerly four from further furthermore general generally given had has have he hence her
  here high his historians historical historically how however if important in indeed initially instead is it
  its just known large last late later least less let like likewise little local long main major many
  mathematically meanwhile members men modern more moreover most much my natural near nearly neither never
  nevertheless new next nine no none nonetheless nor not notable now numerous of often on once one only or
  originally other others otherwise our over owing part people perhaps physical previous previously prior quite
  rather recent recently regarding roughly same scholars second see seven several shall she should similar
  similarly since six small so some sometimes soon speakers special starting still students studies subsequent
  subsequently such ten than that the their them then there thereafter therefore these they third this those
  though three through throughout thus to today together too total traditional traditionally twelve twenty two
  typical typically under unlike unless until up upon use used users using usually various very was we were what
  when where whereas whether which while who whose why will with within without women would yet you young your
  """.split()
)
_MONTHS_AND_DAYS = frozenset(f"{_MONTHS} Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
_TITLES = frozenset("Mr Mr. Mrs Mrs. Ms Ms. Dr Dr. Prof. Rev. Hon. Gen. Lt. Col. Capt. Sgt. Gov. Sen. Rep.".split())
# A word with such an end that opens a sentence is rarely a name.
_COMMON_END = re.compile(
  r"(?:ly|tions?|ments?|ness|it(?:y|ies)|ists|isms?|ers|ors|ics|[ae]nces?|graphy|ology|als|ures)$"
)

_UPPER = "[" + "".join(c for c in map(chr, range(0x3000)) if c.isupper()) + "]"
_ABBREVIATION = (
  r"(?:Dr|Mrs?|Ms|St|Ste|Mt|Ft|Prof|Gen|Lt|Col|Capt|Sgt|Maj|Adm|Rev|Gov|Sen|Rep|Hon|Jr|Sr|Bros|Inc|Ltd|Co|Corp)\."
)
_INITIALS = rf"{_UPPER}\.(?:-?{_UPPER}\.)*"
_WORD = (
  rf"(?:(?:[dl]['’]|[ae]l-|[ei])?{_UPPER}\w*"
  rf"(?:['’ʻʼ](?!(?:s|t|re|ve|ll|d|m)\b)\w+|[-‐](?:[a-zà-ÿ]{{1,4}}-){{0,2}}(?:{_UPPER}|\d)\w*|&\w+)*"
  r"(?!\w|['’]t\b))"
)
_NUMBER = r"\d{1,3}(?:-\d{3})?(?![\w%]|[.,:–-]\d|['’]s\b)"
_PARTICLE = (
  r"(?:of(?: the)?|for(?: the)?|de(?: la| las| los| le)?|van(?: de[rn]?)?|von(?: der)?|del|della|dell[oe]|d[aiou]s?|"
  r"des|den|der|du|l[aeo]s?|e?l|al|bin|ibn|ben|zu[rm]?|und|y|et|af|av|ter?|ten|sur|upon|&)"
)
_NAME = re.compile(
  rf"(?<![\w'’&])(?:(?:v[ao]n|de|ibn|bin) (?:de[rn]? |la )?)?(?:{_ABBREVIATION}|{_INITIALS}|{_WORD})"
  rf"(?: (?:{_ABBREVIATION}|{_INITIALS}|(?:{_PARTICLE} )?{_WORD}|{_NUMBER}))*"
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
    name = " ".join(words)
    span = Span(start, start + len(name), "entity")
    if opens and len(words) == 1 and not name.isupper():
      doubtful.append((name, span))
    else:
      names.append(span)
      proper.update(words)
  if doubtful:
    common = set(_LOWER_WORD.findall(text))
    names += [
      span
      for name, span in doubtful
      if name in proper or not (name.lower() in common or _COMMON_END.search(name))
    ]
  return sorted(names)


_LOWER_WORD = re.compile(r"\b[^\W\d_]+\b")
_FULL_STOP_INSIDE = re.compile(r"(?<=\.) ")


def _capitalised_runs(text: str) -> Iterator[tuple[int, list[str], bool]]:
  """Yields start, words, and whether the first word may be capitalised only because it opens a sentence."""
  for match in _NAME.finditer(text):
    start, words = match.start(), match[0].split(" ")
    opens = _opens_sentence(text, start)
    while words:
      cut = next(
        (n for n in range(1, len(words)) if words[n - 1][-1] == "." and words[n].lower() in _OPENERS), len(words)
      )
      run, words = words[:cut], words[cut:]
      next_start = start + sum(map(len, run)) + len(run)
      while run and (run[0] in _TITLES or opens and run[0].lower() in _OPENERS or run[0] == "&"):
        start += len(run.pop(0)) + 1
        first = False
      yield start, run, opens
      start, opens = next_start, True


def _opens_sentence(text: str, start: int) -> bool:
  before = start - 1
  while before >= 0 and text[before] in " \"'“”‘’«»()[]":
    before -= 1
  return before < 0 or text[before] in ".!?…\n"
