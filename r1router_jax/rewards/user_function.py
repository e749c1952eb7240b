"""A reward function of the user's own, which a config names.

The name is "module:function", as Python finds them.  What the function returns
is checked, since one number that is not finite would spoil a whole update.

Axes:  n responses or trajectories
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from r1router_jax.common.errors import UserError


def import_function(name: str) -> Callable[..., Any]:
  """Return the function that is called "module:function".

  Raises:
    UserError: if there is none.
  """
  module, _, attribute = name.partition(":")
  try:
    # An empty name would be a ValueError, which a module's own fault may be.
    function = module and getattr(importlib.import_module(module), attribute)
    fault = "" if callable(function) else "it is no function"
  except (ImportError, AttributeError) as error:
    fault = str(error)
  if fault:
    raise UserError(
      f"The reward {name!r} cannot be imported ({fault}).  "
      "Write module:function, as Python finds it."
    )
  return function


def check_numbers(
  what: str, values: Any, count: int
) -> Float[np.ndarray, " n"]:
  """Return `values` as an array of `count` finite numbers.

  Raises:
    UserError: if they are none; it begins with `what`, which gave them.
  """
  try:
    found = np.asarray(values, np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"{what} gave {values!r:.60}; wanted {count} finite numbers."
    ) from error
  if found.shape != (count,) or not np.isfinite(found).all():
    raise UserError(
      f"{what} gave {found.shape} numbers; wanted {count} finite ones."
    )
  return found
