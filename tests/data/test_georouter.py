"""The embedded world: its facts hang together, its splits do not leak."""

import collections
import hashlib
import os
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from r1router_jax.common.records import KBS
from r1router_jax.data import georouter
from r1router_jax.data.countries import phrases, wordings
from tests.data import held_out_wordings
from tools.georouter import values
from tools.georouter.values import first_item

QUESTIONS = {name: georouter.load_questions(name) for name in georouter.SPLITS}
EVERY = [q for questions in QUESTIONS.values() for q in questions]
PASSAGES = {p.id: p for kb in KBS for p in georouter.load_passages(kb)}
COUNTRIES = {c["id"]: c for c in georouter.load_countries()}
NAMES = {c["name"]: c for c in COUNTRIES.values()}
CODER = tokenizers.Tokenizer.from_file(str(georouter.tokenizer_path()))

HELD_OUT = {"text_text_2hop", "image_table_table_3hop", "map_text_2hop"}

LESS = re.compile(r"fewer|smaller|lower|shorter|earlier|first")


def ids(text):
  return CODER.encode(text).ids


def number(text):
  """The number, or the year of a date, that a comparison compares."""
  return float(text.split()[-1].replace(",", ""))


def about(evidence):
  """Names of the countries that a passage is evidence about."""
  text = PASSAGES[evidence].text
  if evidence.startswith("table/"):
    return re.findall(r"\[Row\](.*?)\[sep\]", text)
  return [re.match(r"(?:Flag of |Map of )?(.*?)[.:]", text + ".")[1]]


def evidence_of(questions):
  """Each (hop, id of one of its passages)."""
  for question in questions:
    for hop in question.hops:
      for evidence in hop.evidence:
        yield hop, evidence


# ---- Splits.


def test_split_sizes():
  sizes = {split: len(questions) for split, questions in QUESTIONS.items()}
  assert sizes == dict(train=5000, val=180, test=780, compose=900)
  families = collections.Counter(q.family for q in QUESTIONS["test"])
  assert all(families[family] == 60 for family in HELD_OUT)
  assert not HELD_OUT & {q.family for q in QUESTIONS["train"]}
  assert HELD_OUT == {q.family for q in QUESTIONS["compose"]}
  assert len({q.id for q in EVERY}) == len(EVERY)
  benchmarks = "InfoSeek Dyn-VQA WebQA 2WikiMultihopQA Open-WikiTable TabFact"
  assert {q.benchmark for q in QUESTIONS["test"]} == {*benchmarks.split()}


def test_country_is_split_by_hash_of_its_name():
  for name, country in NAMES.items():
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    bucket = int(digest, 16) % 100
    split = "train" if bucket < 70 else "val" if bucket < 78 else "test"
    assert country["split"] == split


@pytest.mark.parametrize("split", georouter.SPLITS)
def test_questions_and_evidence_stay_in_their_split(split):
  # The questions of "compose" are about training countries.
  countries = "train" if split == "compose" else split
  for question in QUESTIONS[split]:
    assert question.subjects
    for subject in question.subjects:
      assert COUNTRIES[subject]["split"] == countries, question
    for _, evidence in evidence_of([question]):
      for name in about(evidence):
        assert NAMES[name]["split"] == countries, (question.id, evidence)


def test_no_question_is_repeated():
  asked = collections.Counter((q.text, q.image) for q in EVERY)
  assert max(asked.values()) == 1


def test_held_out_wordings_are_not_in_train():
  held = re.compile("|".join(f"(?:{p})" for p in held_out_wordings.patterns()))
  pairs = [(split, q) for split in QUESTIONS for q in QUESTIONS[split]]
  found = [split for split, q in pairs if held.search(q.text)]
  assert found.count("train") == found.count("compose") == 0
  assert found.count("val") > 10 and found.count("test") > 50
  for frame in wordings.HELD_FRAMES:
    start = frame.split("NOUN")[0]
    for split in ("train", "compose"):
      assert not [q for q in QUESTIONS[split] if start in q.text]


@pytest.mark.parametrize("field", phrases.PHRASES)
def test_every_field_has_enough_wordings(field):
  nouns, held_nouns, sentences, held_sentences = phrases.PHRASES[field]
  assert len(sentences) + len(nouns) * len(wordings.FRAMES) >= 8
  assert len(held_sentences) >= 3
  assert not set(nouns) & set(held_nouns)
  assert not set(sentences) & set(held_sentences)
  assert all(s.count("{}") == 1 for s in (*sentences, *held_sentences))


# ---- Gold.


def test_gold_answers_are_in_their_evidence():
  for question in EVERY:
    subjects = {COUNTRIES[s]["name"] for s in question.subjects}
    for hop, evidence in evidence_of([question]):
      assert hop.answers[0] in PASSAGES[evidence].text, (hop, evidence)
      assert set(about(evidence)) & subjects


def test_gold_routes_hold_the_evidence():
  hops = [hop for question in EVERY for hop in question.hops]
  for hop in hops:
    assert hop.routes == tuple(e.split("/")[0] for e in hop.evidence)
  assert sum(len(hop.routes) > 1 for hop in hops) > 300


def test_final_answers_follow_from_the_hops():
  """Each final answer again, from the hops and the words of the question."""
  checked = collections.Counter()
  for q in EVERY:
    facts = [hop for hop in q.hops if hop.routes[0] != "image"]
    if "compare" in q.family or "3hop" in q.family:
      pick = min if LESS.search(q.text) else max
      winner = pick(range(2), key=lambda i: number(facts[i].answers[0]))
      right = COUNTRIES[q.subjects[winner]]["name"]
    elif "yesno" in q.family and len(facts) == 2:
      one, other = (number(hop.answers[0]) for hop in facts)
      right = "yes" if one > other else "no"
    elif "yesno" in q.family:
      value = re.escape(facts[0].answers[0])
      is_said = re.search(rf"(?<![\w,.]){value}(?!\w|[.,]\d)", q.text)
      right = "yes" if is_said else "no"
    elif q.hops:
      right = q.hops[-1].answers[0]
    else:
      continue
    assert q.answers[0] == right, q
    checked[q.family] += 1
  assert len(checked) == 13


def test_evidence_in_the_question_suffices():
  for question in EVERY:
    if question.family == "none_text":
      assert question.answers[0] in question.text and not question.image


def test_comparison_answers_are_balanced():
  for split in ("train", "test"):
    first = [
      q.answers[0] == COUNTRIES[q.subjects[0]]["name"]
      for q in QUESTIONS[split]
      if "compare" in q.family
    ]
    checks = [q for q in QUESTIONS[split] if "yesno" in q.family]
    assert 0.4 < np.mean(first) < 0.6
    assert 0.4 < np.mean([q.answers[0] == "yes" for q in checks]) < 0.6


def test_variants_of_an_answer():
  found = {hop.sub_question: hop.answers for q in EVERY for hop in q.hops}
  dates = [a for asked, a in found.items() if "independence date" in asked]
  assert dates
  for answers in dates:
    day, month, year = answers[0].split()
    assert f"{month} {day}, {year}" in answers
  for asked, answers in found.items():
    if "," in answers[0] and "population" in asked:
      assert answers[0].replace(",", "") in answers
    assert len(set(answers)) == len(answers)


# ---- Pictures.


def test_images_are_small_pngs():
  for folder in ("kb", "query", "map", "query-map"):
    paths = sorted((georouter.FOLDER / "pictures" / folder).iterdir())
    assert len(paths) > 150
    for path in paths:
      with PIL.Image.open(path) as picture:
        assert picture.size == (64, 64) and picture.format == "PNG"


def test_question_images_differ_from_indexed_images():
  shown = {p.image for p in PASSAGES.values() if p.image}
  indexed = {pathlib.Path(path).read_bytes() for path in shown}
  asked = {q.image for q in EVERY if q.image}
  assert len(asked) > 150
  for path in asked:
    assert pathlib.Path(path).read_bytes() not in indexed
  for question in EVERY:
    pictured = bool(question.hops) and question.hops[0].routes == ("image",)
    pictured |= question.family == "none_visual"
    assert bool(question.image) == pictured


# ---- Passages.


@pytest.mark.parametrize("kb", KBS)
def test_passages(kb):
  passages = [p for p in PASSAGES.values() if p.kb == kb]
  assert len({p.id for p in passages}) == len(passages)
  assert all(p.id.startswith(f"{kb}/") for p in passages)
  assert max(len(ids(p.text)) for p in passages) <= 90
  assert all(bool(p.image) == (kb == "image") for p in passages)


def test_table_holds_one_statistic_of_at_most_two_countries():
  for passage in PASSAGES.values():
    if passage.kb == "table":
      assert re.fullmatch(
        r"\[Title\]World Factbook 2015\[Section title\]\w+\[Caption\][^[]+"
        r"\[Table name\]table_\d+\[Header\]Country\[sep\][^[]+\[Rows\]"
        r"(\[Row\][^[]+\[sep\][^[]+){1,2}",
        passage.text,
      ), passage.text


# ---- Tokenizer.


def test_control_tokens():
  assert CODER.get_vocab_size() == 4096
  for token in ("<|endoftext|>", "<|im_end|>", "<|plan|>", "</answer>"):
    assert len(ids(token)) == 1 and ids(token)[0] < 17
  assert ids("<|endoftext|>") == [0]
  assert len(ids("\n")) == 1
  added = CODER.get_added_tokens_decoder().values()
  assert "[sep]" not in {t.content for t in added if t.special}
  assert len(ids("[sep]")) == 1


def within(piece, text):
  whole = ids(text)
  return any(whole[i : i + len(piece)] == piece for i in range(len(whole)))


def test_name_has_same_token_ids_everywhere():
  for name in NAMES:
    piece = ids(name)
    assert within(piece, f"What is the capital of {name}?")
    assert within(piece, f"Q:\n{name}. Capital: x.")
    assert within(piece, f"[Rows][Row]{name}[sep]12")
    assert ids(f"<answer>{name}</answer>")[1:-1] == piece


@given(st.integers(0, 10**9))
def test_number_has_same_token_ids_everywhere(n):
  piece = ids(f"{n:,}")
  assert within(piece, f"Population: {n:,}.")
  assert within(piece, f"[sep]{n:,}[Row]")
  assert ids(f"<answer>{n:,}</answer>")[1:-1] == piece


@given(st.text("abz ZÉô漢0123,.'\n\t-+()", max_size=40))
def test_decoding_restores_text_except_leading_spaces(text):
  spaced = re.sub(r"(\A|\n)(?=\S)", r"\1 ", text)
  assert CODER.decode(ids(text), skip_special_tokens=False) == spaced


def test_gold_answers_can_be_copied():
  for hop, evidence in evidence_of(EVERY):
    assert within(ids(hop.answers[0]), PASSAGES[evidence].text)


# ---- Reading, rebuilding.


def test_unknown_names_list_the_known():
  with pytest.raises(ValueError, match="train, val, test"):
    georouter.load_questions("dev")
  with pytest.raises(ValueError, match="text, image, table"):
    georouter.load_passages("tables")


@pytest.mark.parametrize(
  "clean, raw, wanted",
  [
    (values.parse_number, "$29.53 billion (2014 est.) ++ $1", 29.53e9),
    (values.parse_number, "1.284 million sq km", 1_284_000),
    (values.parse_number, "NA", None),
    (values.parse_date, "11 August 1960 (from France)", "11 August 1960"),
    (values.parse_date, "none (territory of Australia)", None),
    (values.parse_peak, "Emi Koussi 3,415 m", ("Emi Koussi", 3415)),
    (values.parse_peak, "unnamed elevation 53 m", (None, 53)),
    (first_item, "Sara 27.7%, Arab 12.3%", "Sara"),
    (first_item, "Trinidad and Tobago 24%, US 9%", "Trinidad and Tobago"),
    (first_item, "homogeneous (except for 20,000 Chinese)", None),
    (values.parse_currency, "Omani rials (OMR) per US dollar -", "Omani rials"),
    (values.parse_currency, "the US dollar is used", "US dollars"),
    (values.parse_city, "N'DJAMENA (capital) 1.26 million", "N'Djamena"),
    (values.parse_city, "PORT-AU-PRINCE (capital) 2.4", "Port-au-Prince"),
    (values.parse_holiday, "Day of Emperor AKI, 23 Dec", "Day of Emperor Aki"),
    (values.parse_symbol, "white, five-pointed star; national colors:", None),
    (values.parse_anthem, '"La Tchadienne" (The Chadian)', "La Tchadienne"),
  ],
)
def test_factbook_text_is_cleaned(clean, raw, wanted):
  assert clean(raw) == wanted


SOURCES = os.environ.get("GEOROUTER_SOURCES")


@pytest.mark.slow
@pytest.mark.skipif(not SOURCES, reason="GEOROUTER_SOURCES names no folder")
def test_sources_rebuild_the_shipped_files(tmp_path):
  pytest.importorskip("resvg_py")
  from tools.georouter import __main__

  shutil.copy(georouter.tokenizer_path(), tmp_path)
  __main__.build(pathlib.Path(SOURCES), tmp_path)
  for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
    ours = georouter.FOLDER / path.relative_to(tmp_path)
    assert ours.read_bytes() == path.read_bytes(), ours
