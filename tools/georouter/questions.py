"""Questions with gold hops, drawn family by family from the facts.

Every question is about countries of one split alone.  Validation and test mix
wordings that occur in training with held-out ones, half and half.
"""

import collections
import random

from r1router_jax.data.countries.gold_hops import FactWorld
from r1router_jax.data.countries.question_generator import QuestionGenerator

# Family: (benchmark that it mirrors, training questions).
FAMILIES = {
  "text_1hop": ("2WikiMultihopQA", 500),
  "table_1hop": ("Open-WikiTable", 500),
  "image_1hop": ("InfoSeek", 250),
  "image_text_2hop": ("InfoSeek", 650),
  "image_table_2hop": ("Dyn-VQA", 650),
  "table_compare_2hop": ("2WikiMultihopQA", 450),
  "text_compare_2hop": ("2WikiMultihopQA", 250),
  "text_table_2hop": ("2WikiMultihopQA", 450),
  "tabfact_yesno": ("TabFact", 450),
  "text_yesno": ("TabFact", 250),
  "none_text": ("TabFact", 250),
  "none_visual": ("WebQA", 350),
  # Without demonstrations: the split "compose" asks them of training countries.
  "text_text_2hop": ("2WikiMultihopQA", 0),
  "image_table_table_3hop": ("Dyn-VQA", 0),
  "map_text_2hop": ("InfoSeek", 0),
}

# Questions per family; the last two numbers are for those not demonstrated.
_VAL_COUNT, _TEST_COUNT, _TEST_ONLY_COUNT, _COMPOSE_COUNT = 15, 50, 60, 300


def draw_questions(world: FactWorld, split: str) -> list[dict]:
  """Draw the questions of a split, shuffled, as rows of the questions' file.

  Raises:
    ValueError: the world has too few facts for that many questions.
  """
  rows, seen = [], set()
  for family, (benchmark, train) in FAMILIES.items():
    count = {
      "train": train,
      "val": _VAL_COUNT if train else 0,
      "test": _TEST_COUNT if train else _TEST_ONLY_COUNT,
      "compose": 0 if train else _COMPOSE_COUNT,
    }[split]
    # A generator of its own, so that no family depends on the others' sizes.
    rng = random.Random(f"{split} {family}")
    countries = "train" if split == "compose" else split
    generator = QuestionGenerator(world, countries, rng)
    draw_question = getattr(generator, family)
    kept = tries = 0
    while kept < count:
      tries += 1
      if tries > 200 * count:
        raise ValueError(
          f"Only {kept} of {count} questions of {family} in {split} after "
          f"{tries} tries: too few facts.  Ask for fewer in FAMILIES."
        )
      question = draw_question()
      if question is None or (question["text"], question["image"]) in seen:
        continue
      seen.add((question["text"], question["image"]))
      del question["said"]
      rows.append(
        dict(
          id=f"georouter/{split}/{family}/{kept}",
          **question,
          family=family,
          benchmark=benchmark,
        )
      )
      kept += 1
  random.Random(split).shuffle(rows)
  return rows


def count_families(rows: list[dict]) -> dict[str, int]:
  """Count the questions of each family."""
  return dict(sorted(collections.Counter(r["family"] for r in rows).items()))
