"""The facts about a country that passages and questions tell."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Country:
  """A country or territory.

  Attributes:
    id: the name as a slug, e.g. "the-bahamas".
    name: the name as it is written everywhere, e.g. "the Bahamas".
    iso: two-letter code, which names the file of the flag.
    split: "train", "val" or "test", by a hash of the name.
    region: one of the values of `REGIONS`.
    names: nominal facts, by field.
    numbers: numeric facts, by field.
    flag: description of the flag, or "" if unknown.
    location: description of the location.
    prose: chunks of running text, (topic, chunk).
    aliases: other accepted names.
  """

  id: str
  name: str
  iso: str
  split: str
  region: str
  names: dict[str, str]
  numbers: dict[str, float]
  flag: str
  location: str
  prose: tuple[tuple[str, str], ...]
  aliases: tuple[str, ...]
