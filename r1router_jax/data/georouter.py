"""GeoRouter: a small world of countries in three knowledge bases.

Text passages, captioned flags and maps, and one-statistic tables of some 230
countries, with questions whose gold traces say what to ask where.  It comes
with the package; `files/georouter/README.md` is its card and
`georouter_source` what made it.
"""

import json
import pathlib

from r1router_jax.common.records import KBS, Hop, Passage, Question

FOLDER = pathlib.Path(__file__).parent / "files" / "georouter"

SPLITS = ("train", "val", "test")


def questions(split: str) -> list[Question]:
  """All questions of a split, in the order of the file."""
  if split not in SPLITS:
    raise ValueError(f"No split {split!r}; known: {', '.join(SPLITS)}.")
  return [question(row) for row in rows(f"questions_{split}")]


def passages(kb: str) -> list[Passage]:
  """All passages of a knowledge base, in the order of its index."""
  if kb not in KBS:
    raise ValueError(f"No knowledge base {kb!r}; known: {', '.join(KBS)}.")
  return [passage(row, kb) for row in rows(f"kb_{kb}")]


def countries() -> list[dict[str, str]]:
  """{"id", "name", "iso", "split"} of each; questions' `subjects` are ids."""
  return rows("countries")


def tokenizer_path() -> pathlib.Path:
  """The tokenizer of the tiny policy, made for this world."""
  return FOLDER / "tokenizer.json"


def rows(name: str) -> list[dict]:
  """The rows of one of the files, as they are; pictures' paths are relative."""
  with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def question(row: dict) -> Question:
  """The record of a row of questions."""
  hops = tuple(
    Hop(
      hop["sub_question"],
      tuple(hop["routes"]),
      tuple(hop["answers"]),
      tuple(hop["evidence"]),
    )
    for hop in row["hops"]
  )
  return Question(
    id=row["id"],
    text=row["text"],
    answers=tuple(row["answers"]),
    image=_picture(row["image"]),
    family=row["family"],
    benchmark=row["benchmark"],
    subjects=tuple(row["subjects"]),
    hops=hops,
  )


def passage(row: dict, kb: str) -> Passage:
  """The record of a row of knowledge base `kb`."""
  return Passage(row["id"], kb, row["text"], _picture(row.get("image", "")))


def _picture(path: str) -> str:
  return str(FOLDER / path) if path else ""
