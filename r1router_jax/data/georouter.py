"""GeoRouter: a small world of countries in three knowledge bases.

The world has text passages, captioned flags and maps, and one-statistic tables
of some 230 countries, with questions whose gold traces say what to ask where.
It comes with the package; `files/georouter/README.md` is its data card, and
`tools/georouter` rebuilds it.
"""

import json
import pathlib

import msgspec

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import KBS, Passage, Question

# The files are package data, so that a wheel holds them.
FOLDER = pathlib.Path(__file__).parent / "files" / "georouter"
# "compose" asks training countries in forms without demonstrations.
SPLITS = ("train", "val", "test", "compose")


def load_questions(split: str) -> list[Question]:
  """Return all questions of a split, in the order of the file."""
  if split not in SPLITS:
    raise UserError(f"No split {split!r}; known: {', '.join(SPLITS)}.")
  return [to_question(row) for row in read_rows(f"questions_{split}")]


def load_passages(kb: str) -> list[Passage]:
  """Return all passages of a knowledge base, in the order of its index."""
  if kb not in KBS:
    raise UserError(f"No knowledge base {kb!r}; known: {', '.join(KBS)}.")
  return [to_passage(row, kb) for row in read_rows(f"kb_{kb}")]


def load_countries() -> list[dict[str, str]]:
  """Return {"id", "name", "iso", "split"} of each country.

  The `subjects` of a question are such ids.
  """
  return read_rows("countries")


def tokenizer_path() -> pathlib.Path:
  """Return the path of the tiny policy's tokenizer, made for this world."""
  return FOLDER / "tokenizer.json"


def read_rows(name: str) -> list[dict]:
  """Return the rows of a file; paths of images are relative to `FOLDER`."""
  with (FOLDER / f"{name}.jsonl").open(encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def to_question(row: dict) -> Question:
  """Convert a row of a question file."""
  return msgspec.convert(row | dict(image=_image_path(row["image"])), Question)


def to_passage(row: dict, kb: str) -> Passage:
  """Convert a row of knowledge base `kb`."""
  return Passage(row["id"], kb, row["text"], _image_path(row.get("image", "")))


def _image_path(path: str) -> str:
  return str(FOLDER / path) if path else ""
