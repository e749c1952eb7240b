"""The facts of the training countries, read from GeoRouter's passages.

The package brings passages and questions, but not the table of facts that both
were made of.
"""

import functools
import re
from collections.abc import Mapping

from r1router_jax.data import georouter
from r1router_jax.data.countries import relations
from r1router_jax.data.countries.country import Country


@functools.cache
def load_train_countries() -> list[Country]:
  """Return the countries of the training split, read from the passages."""
  names = {
    row["name"]: row
    for row in georouter.load_countries()
    if row["split"] == "train"
  }
  facts = {name: {} for name in names}
  labels = {r.label: r.field for r in relations.RELATIONS.values()}
  for passage in georouter.load_passages("text"):
    name, _, rest = passage.text.partition(". ")
    if name in facts:
      for part in re.split(r"\. (?=[A-Z])", rest.removesuffix(".")):
        label, _, value = part.partition(": ")
        field = labels.get(re.sub(r" \(.*\)$", "", label))
        if field and value:
          facts[name][field] = value
  caption = re.compile(rf"\[Caption\]({'|'.join(labels)}) of ")
  for passage in georouter.load_passages("table"):
    field = labels[caption.search(passage.text)[1]]
    for name, value in re.findall(
      r"\[Row\]([^[]*)\[sep\]([^[]*)", passage.text
    ):
      if name in facts:
        facts[name].setdefault(field, value)
  flags = {}
  for passage in georouter.load_passages("image"):
    _, kind, owner = passage.id.split("/")
    if kind == "flag":
      flags[owner] = passage.text.partition(": ")[2]
  return [
    _make_country(names[name], facts[name], flags.get(names[name]["id"], ""))
    for name in names
  ]


def _make_country(
  row: Mapping[str, str], facts: Mapping[str, str], flag: str
) -> Country:
  nominal, numbers = {}, {}
  for field, value in facts.items():
    if relations.RELATIONS[field].is_number:
      numbers[field] = float(value.replace(",", ""))
    else:
      nominal[field] = value
  return Country(
    id=row["id"],
    name=row["name"],
    iso=row["iso"],
    split="train",
    region="",
    names=nominal,
    numbers=numbers,
    flag=flag,
    location="",
    prose=(),
    aliases=(),
  )
