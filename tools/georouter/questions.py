"""Questions with gold traces, drawn family by family from the facts.

Every question is about countries of one split alone.  Validation and test mix
wordings seen in training with held ones, half and half.
"""

import collections
import random

from tools.georouter.hops import World
from tools.georouter.teller import Teller

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
  # Never trained on:
  "text_text_2hop": ("2WikiMultihopQA", 0),
  "image_table_table_3hop": ("Dyn-VQA", 0),
  "map_text_2hop": ("InfoSeek", 0),
}

_VAL, _TEST, _TEST_HELD = 15, 50, 60  # Questions a family.


def draw(world: World, split: str) -> list[dict]:
  """The questions of a split, shuffled; rows of the questions' file."""
  rows, seen = [], set()
  for family, (benchmark, train) in FAMILIES.items():
    count = {
      "train": train,
      "val": _VAL if train else 0,
      "test": _TEST if train else _TEST_HELD,
    }[split]
    rng = random.Random(f"{split} {family}")
    teller = Teller(world, split, rng)
    kept = tries = 0
    while kept < count:
      tries += 1
      if tries > 200 * count:
        raise ValueError(
          f"Only {kept} of {count} questions of {family} in {split} after "
          f"{tries} tries: too few facts.  Ask for fewer in FAMILIES."
        )
      told = getattr(teller, family)()
      if told is None or (told["text"], told["image"]) in seen:
        continue
      seen.add((told["text"], told["image"]))
      rows.append(
        dict(
          id=f"georouter/{split}/{family}/{kept}",
          **told,
          family=family,
          benchmark=benchmark,
        )
      )
      kept += 1
  random.Random(split).shuffle(rows)
  return rows


def counts(rows: list[dict]) -> dict[str, int]:
  return dict(sorted(collections.Counter(r["family"] for r in rows).items()))
