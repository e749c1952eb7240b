"""Schemas of JSON that comes from outside: files, and lines of journals.

A schema is a type that msgspec knows, most often a `Struct` whose fields have
bounds.  What does not fit is a UserError that names the field, what came and
what was wanted, before anything is made of it.  What is no strict JSON (NaN, a
key twice, deep nesting, endless digits) `row_files.parse_json` has refused.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec

from r1router_jax.common import row_files
from r1router_jax.common.errors import UserError
from r1router_jax.common.files import open_nonblocking

T = TypeVar("T")

MAX_BYTES = 1 << 20  # Of a file of options; that of a large model takes 50 KiB.

# NaN is within no bounds.
_FLOAT = sys.float_info.max
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
PositiveShare = Annotated[float, msgspec.Meta(gt=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Finite = Annotated[float, msgspec.Meta(ge=-_FLOAT, le=_FLOAT)]

_FIELD = re.compile("Object (missing required|contains unknown) field `(.*)`")
_ONE_OF = re.compile(r"expected `str` matching regex '\^\((.*)\)\\\\Z'")


def one_of(*values: str) -> Any:
  """Return the type of a string that is one of these."""
  # Of a Literal, msgspec's errors do not name the values.
  return Annotated[str, msgspec.Meta(pattern=rf"^({'|'.join(values)})\Z")]


def int_range(low: int, high: int) -> Any:
  """Return the type of a whole number of a range, both ends included."""
  return Annotated[int, msgspec.Meta(ge=low, le=high)]


# Of models.  No published one comes near: a larger number is not believed.
Size, Layers = int_range(1, 1 << 24), int_range(1, 1000)


def under_names(record: type, names: Mapping[str, str]) -> type:
  """Return the schema of fields of a record that JSON calls by other names.

  `names` maps the record's names to these; no field may be absent.
  """
  kinds = get_type_hints(record, include_extras=True)
  fields = [(name, kinds[name]) for name in names]
  return msgspec.defstruct(f"{record.__name__}Json", fields, rename=names)


def convert(value: Any, kind: Any, place: str = "") -> Any:
  """Return a value of JSON as a record of a type that msgspec knows.

  One that does not fit raises a UserError, which says where in `place` it is:
  "config.optim.lr is 'x': expected `float`, got `str`".
  """
  try:
    return msgspec.convert(value, kind)
  except msgspec.ValidationError as error:
    fault, _, path = str(error).partition(" - at `$")
  path = path.rstrip("`")
  if field := _FIELD.fullmatch(fault):
    how = "missing" if "missing" in field[1] else "unknown"
    raise UserError(f"{place}{path}.{field[2]} is {how}".lstrip("."))
  # msgspec does not name the key of a dict, but writes "[...]".
  for name in re.findall(r"\w+", path.partition("[...]")[0]):
    value = value[int(name) if name.isdigit() else name]
  name = f"{place}{path}".strip(".")
  # Of lists and objects the fault tells enough.
  if name and not isinstance(value, dict | list | tuple):
    name += f" is {value!r:.80}"
  fault = fault[0].lower() + fault[1:]
  if choice := _ONE_OF.fullmatch(fault):
    known = ", ".join(known or "''" for known in choice[1].split("|"))
    fault = f"take one of {known}"
  raise UserError(f"{name}: {fault}" if name else fault)


def read_json(
  path: str | os.PathLike,
  parse: Callable[[Any], T],
  cure: str,
  *,
  max_bytes: int = MAX_BYTES,
  error: type[UserError] = UserError,
  top: Any = dict[str, Any],
) -> T:
  """Return what `parse` makes of the object, or the `top`, in a JSON file.

  If there is none, or `parse` refuses it by a UserError, it raises an `error`
  with the file, the reason and the cure.
  """
  try:
    with open(path, "rb", opener=open_nonblocking) as file:
      data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
      raise UserError(f"it has more than {max_bytes:,} bytes")
    return parse(convert(row_files.parse_json(data), top))
  except (OSError, UserError) as fault:
    # The second argument of a RowError is the cure of a row.
    reason = fault.strerror if isinstance(fault, OSError) else fault.args[0]
    raise error(f"{path}: {reason.rstrip('.')}.  {cure}") from fault
