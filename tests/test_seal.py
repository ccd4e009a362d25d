"""Seals notice every change of a text, and of its place."""

import pytest

from realm_jax.index.seal import first_line, sealed, unsealed


def test_a_seal_breaks_with_any_change():
  content = {"version": 3, "names": ["a", "b"], "digest": None}
  whole = sealed(content, "index/3")
  assert unsealed(whole, "index/3") == content
  for changed in ({"version": 4}, {"names": ["a"]}, {"digest": ""}, {"seal": "0" * 32}, {"more": 1}):
    with pytest.raises(ValueError, match="its seal is not that of index/3: it was changed, renamed or swapped"):
      unsealed(whole | changed, "index/3")
  with pytest.raises(ValueError, match="its seal is not that of index/4"):
    unsealed(whole, "index/4")
  with pytest.raises(ValueError, match="its seal is not that of"):
    unsealed(content, "index/3")
  with pytest.raises(ValueError, match="expected a JSON object, found list"):
    unsealed([1], "index/3")


def test_first_line():
  assert first_line(ValueError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"
