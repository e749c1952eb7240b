"""What all readers do to texts: they check them."""

import re

from r1router_jax.inputs.rows import Fault

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
