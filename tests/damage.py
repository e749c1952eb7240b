"""Damages of a file: what disks, copies, editors and strangers do to it."""

import copy
import json

# What takes the place of a field: other types, and absurd sizes.
ODD_VALUES = [None, True, "", "128", "x" * 10_000, [], {}, [[]], [1, 2], 1.5]
ODD_VALUES += [-1, 0, 10**6, 10**9, 10**18, 10**400, 1e308, float("nan")]


def _flip_bit(data, rng):
  data = bytearray(data)
  if data:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  return bytes(data)


def _drop_byte(data, rng):
  at = rng.randrange(len(data)) if data else 0
  return data[:at] + data[at + 1 :]


def _add_byte(data, rng):
  at = rng.randrange(len(data) + 1)
  return data[:at] + rng.randbytes(1) + data[at:]


# Functions of the bytes and a `random.Random`.
OF_BYTES = {
  "empty": lambda data, rng: b"",
  "halved": lambda data, rng: data[: len(data) // 2],
  "garbage": lambda data, rng: rng.randbytes(len(data)),
  "zeros": lambda data, rng: bytes(len(data)),
  "a bit": _flip_bit,
  "a byte less": _drop_byte,
  "a byte more": _add_byte,
}


def _places(tree):
  """Yield (container, key) of every field of a tree of JSON."""
  items = tree.items() if isinstance(tree, dict) else enumerate(tree)
  for key, value in items:
    yield tree, key
    if isinstance(value, dict | list):
      yield from _places(value)


def _change_field(data, rng, change):
  """Change a field of a JSON file, or of one line of a JSON Lines file."""
  try:
    lines = [data] if data.startswith(b"{\n") else data.splitlines()
    number = rng.randrange(len(lines))
    tree = json.loads(lines[number])
    container, key = rng.choice(list(_places(tree)))
  except (ValueError, AttributeError, IndexError, TypeError):
    return None  # It is of another format.
  change(container, key)
  lines[number] = json.dumps(tree).encode()
  return b"\n".join(lines) + b"\n"


def _replace_field(data, rng):
  def change(container, key):
    container[key] = copy.deepcopy(rng.choice(ODD_VALUES))

  return _change_field(data, rng, change)


def _remove_field(data, rng):
  return _change_field(data, rng, lambda container, key: container.pop(key))


# Functions of the bytes, which return None if they hold no JSON.
OF_FIELDS = {"an odd field": _replace_field, "no field": _remove_field}
