"""What all readers do to texts: they check them, and cut long ones."""

import re

from r1router_jax.inputs.rows import Fault

WINDOW, STRIDE = 100, 50  # Words.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def check(name: str, value: object) -> str:
  """`value`, where it is harmless text.

  Args:
    name: of the field, to be named.
    value: from anywhere.

  Raises:
    Fault: where it is something else.
  """
  if not isinstance(value, str):
    raise Fault(f'"{name}" is a {type(value).__name__}', "Write it as a string")
  if control := _CONTROL.search(value):
    raise Fault(f'"{name}" holds the control character {control[0]!a}',
                "Remove it")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise Fault(f'"{name}" holds half a surrogate pair',
                "Write whole characters") from None
  return value


def windows(text: str) -> list[str]:
  """`WINDOW` words every `STRIDE`, and the last `WINDOW` words."""
  words = text.split()
  if len(words) <= WINDOW:
    return [text]
  starts = list(range(0, len(words) - WINDOW + 1, STRIDE))
  if starts[-1] + WINDOW < len(words):
    starts.append(len(words) - WINDOW)
  return [" ".join(words[start:start + WINDOW]) for start in starts]
