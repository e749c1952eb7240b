"""Rows of files, and where the reference's lie, for the tests of data."""

import json
import os
import pathlib

import pytest

from r1router_jax.common.records import Passage
from r1router_jax.data import georouter, gold_steps, r1_router_rows

# Not part of the repository: the folder of R1-Router's published files.
REFERENCE = pathlib.Path(os.environ.get("R1ROUTER_REFERENCE", "reference"))
VALID_ROWS = REFERENCE / "grpo_dataset_valid_new.jsonl"
needs_reference = pytest.mark.skipif(
  not VALID_ROWS.exists(), reason="the reference's files are absent"
)


def write_rows(path, rows):
  """Writes objects, or lines as bytes, and returns the path of their file."""
  lines = (r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
  path.write_bytes(b"".join(line + b"\n" for line in lines))
  return str(path)


def retrieve(queries):
  """Finds a passage that repeats its query."""
  return [(Passage(f"{kb}/0", kb, f"On {asked}"),) for kb, asked, _ in queries]


def world_rows():
  """Returns published rows of two rounds, the second with an image."""
  questions = [q for q in georouter.load_questions("val") if len(q.hops) == 2]
  seen = next(q for q in questions if q.image)
  first, *others = [q for q in questions if not q.image][:3]
  found = gold_steps.make_gold_steps([first, seen, *others], retrieve)
  return list(map(r1_router_rows.to_published_row, found))
