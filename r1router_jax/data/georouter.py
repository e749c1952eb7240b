"""GeoRouter: a small world of countries in three knowledge bases.

Text passages, captioned flags and maps, and one-statistic tables of some 230
countries, with questions whose gold traces say what to ask where.  It comes
with the package; `files/georouter/README.md` is its card and
`georouter_source` what made it.
"""

import json
import pathlib

from r1router_jax.records import KBS, Hop, Passage, Question

FOLDER = pathlib.Path(__file__).parent / "files" / "georouter"
SPLITS = ("train", "val", "test")


def questions(split: str) -> list[Question]:
  """All questions of a split, in the order of the file."""
  if split not in SPLITS:
    raise ValueError(f"No split {split!r}; known: {', '.join(SPLITS)}.")
  return [_question(row) for row in _rows(f"questions_{split}.jsonl")]


def passages(kb: str) -> list[Passage]:
  """All passages of a knowledge base, in the order of its index."""
  if kb not in KBS:
    raise ValueError(f"No knowledge base {kb!r}; known: {', '.join(KBS)}.")
  return [
      Passage(row["id"], kb, row["text"], _picture(row.get("image", "")))
      for row in _rows(f"kb_{kb}.jsonl")]


def countries() -> list[dict[str, str]]:
  """{"id", "name", "iso", "split"} of each; questions' `subjects` are ids."""
  return _rows("countries.jsonl")


def tokenizer_path() -> pathlib.Path:
  """The tokenizer of the tiny policy, made for this world."""
  return FOLDER / "tokenizer.json"


def _rows(name: str) -> list[dict]:
  with (FOLDER / name).open(encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def _picture(path: str) -> str:
  return str(FOLDER / path) if path else ""


def _question(row: dict) -> Question:
  hops = tuple(
      Hop(**{key: value if isinstance(value, str) else tuple(value)
             for key, value in hop.items()}) for hop in row["hops"])
  return Question(
      id=row["id"], text=row["text"], answers=tuple(row["answers"]),
      image=_picture(row["image"]), family=row["family"],
      benchmark=row["benchmark"], subjects=tuple(row["subjects"]), hops=hops)
