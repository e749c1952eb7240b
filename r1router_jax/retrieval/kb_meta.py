"""Reads meta.json, the description of a built knowledge base."""

import json
import os

FORMAT = 2  # Of the folder; raise it when its files change.

# What meta.json says of searching alone; vectors do not depend on it.
OPTIONS = ("hybrid", "rerank", "rerank_fingerprint")


def read_meta(folder: str) -> dict | None:
  """What meta.json says, None where there is none."""
  return read_json(os.path.join(folder, "meta.json"))


def read_json(path: str) -> dict | None:
  """What a file of a knowledge base says, None where there is none.

  Raises:
    ValueError: where it is damaged.
  """
  try:
    with open(path, encoding="utf-8") as file:
      return json.load(file)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}).  Delete the folder and build it again."
    ) from None
