"""The words of the grammar: two halves that share none, and whole templates."""

import re
import string

import msgspec
import pytest

from r1router_jax.common.errors import UserError
from r1router_jax.data.domains import lexicon as lexicon_lib

HALVES = {half: lexicon_lib.load_lexicon(half) for half in ("train", "test")}

# What is no wording: classes of things, directions, units, names of fields.
NO_WORDING = {"category", "object", "of", "unit"}
# The slots that may stand in the templates of each field, and those that must.
SLOTS = {
  "relation": dict(
    say="x y",
    it_say="y",
    ask="x",
    describe=("kind y", "kind y"),
    chain=("x", "x"),
    check=("x y", "x"),
    count="kinds y",
  ),
  "number": dict(
    say="x v",
    it_say="v",
    ask="x",
    compare=("a b", "x", ""),
    compare_check=("a b", "x", ""),
    check=("x v", "x"),
  ),
  "visual": dict(part="v", ask="item x"),
}


def strings(value, field=""):
  """Yield the field and the text of all strings within a record."""
  if isinstance(value, str):
    yield field, value
  elif isinstance(value, tuple):
    for each in value:
      yield from strings(each, field)
  # Stories are prose, whose tables may have any word.
  elif isinstance(value, msgspec.Struct) and not isinstance(
    value, lexicon_lib.Story
  ):
    for name in value.__struct_fields__:
      yield from strings(getattr(value, name), name)


def slots(template):
  return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def wordings(half):
  found = set()
  for field, text in strings(HALVES[half]):
    # A pattern of names such as "the {adjective} {noun}" has no word.
    bare = re.sub(r"\{\w+\}|\bthe\b|\W", "", text)
    if field not in NO_WORDING and bare and text not in ("more", "less"):
      found.add(text.lower())
  return found


def test_halves_share_no_word_or_wording():
  assert not wordings("train") & wordings("test")


def test_halves_share_no_wording_but_for_slots_and_commas():
  bare = [
    {re.sub(r"[^a-z{}]+", " ", text) for text in wordings(half) if "{" in text}
    for half in HALVES
  ]
  assert not bare[0] & bare[1]


def test_counts():
  total = {
    name: sum(len(getattr(half, name)) for half in HALVES.values())
    for name in ("kinds", "relations", "numbers", "visuals")
  }
  assert total["kinds"] >= 100 and total["relations"] >= 60
  assert total["numbers"] >= 40 and total["visuals"] >= 10
  for half in HALVES.values():
    assert len({kind.category for kind in half.kinds}) == 12
    assert sum(number.year for number in half.numbers) >= 3


def kinds_of_records(half):
  yield from (("relation", record) for record in half.relations)
  yield from (("number", record) for record in half.numbers)
  yield from (("visual", record) for record in half.visuals)


@pytest.mark.parametrize("half", HALVES)
def test_templates_have_the_slots_of_their_field(half):
  for kind, record in kinds_of_records(HALVES[half]):
    for field, wanted in SLOTS[kind].items():
      value = getattr(record, field)
      for entry in (value,) if isinstance(value, str) else value:
        texts = (entry,) if isinstance(entry, str) else entry
        parts = (wanted,) if isinstance(wanted, str) else wanted
        for text, names in zip(texts, parts, strict=True):
          assert slots(text) == set(names.split()), (record.name, field, text)


@pytest.mark.parametrize("half", HALVES)
def test_superlatives_name_a_kind(half):
  for number in HALVES[half].numbers:
    assert {direction for _, direction in number.most} == {"more", "less"}
    for text, _ in number.most:
      assert slots(text) in ({"kind"}, {"kinds"}), text


@pytest.mark.parametrize("half", HALVES)
def test_each_attribute_has_several_wordings(half):
  for kind, record in kinds_of_records(HALVES[half]):
    if kind == "visual":
      assert len(record.ask) >= 2
      continue
    assert len(record.say) >= 4 and len(record.ask) >= 4
    for field in ("it_say", "check"):
      assert len(getattr(record, field)) >= 2
    for field in ("say", "it_say", "ask"):
      texts = getattr(record, field)
      assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("half", HALVES)
def test_sentences_end_and_do_not_double_articles(half):
  for _, record in kinds_of_records(HALVES[half]):
    for text in (*getattr(record, "say", ()), *getattr(record, "it_say", ())):
      assert text.endswith("."), text
    for text in record.ask:
      assert text.endswith(("?", ".")), text
    for _, text in strings(record):
      # A name may have its own article, and an end of its own.
      assert not re.search(r"\bthe \{[xab]\}|\{[xyab]\}'s", text), text


@pytest.mark.parametrize("half", HALVES)
def test_headers_and_names_tell_attributes_apart(half):
  records = [record for _, record in kinds_of_records(HALVES[half])]
  names = [record.name for record in records]
  assert len(set(names)) == len(names)
  headers = [x.header for x in records if hasattr(x, "header")]
  assert len(set(headers)) == len(headers)


@pytest.mark.parametrize(
  "text, message",
  [
    ("[[kind", "1.toml: Expected ']]'"),
    ("[[knid]]", "1.toml: .*unknown field `knid`"),
    ('[[kind]]\none="mill"\nmany=3', "1.toml: Expected `str`.*many"),
  ],
)
def test_wrong_file_is_named(text, message, tmp_path, monkeypatch):
  (tmp_path / "test").mkdir()
  (tmp_path / "test/1.toml").write_text(text)
  monkeypatch.setattr(lexicon_lib, "FOLDER", tmp_path)
  with pytest.raises(UserError, match=message):
    lexicon_lib.load_lexicon.__wrapped__("test")


def test_unknown_half_is_named():
  with pytest.raises(UserError, match="'tests'.*train or test"):
    lexicon_lib.load_lexicon("tests")
