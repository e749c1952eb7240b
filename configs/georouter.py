r"""The shortest run: Step-GRPO on GeoRouter, from what the package brings.

  python -m r1router_jax.train --config=configs/georouter.py:tiny \
      --workdir=runs/georouter

It is configs/step_grpo.py with gold passages, so nothing need be built first.
The warm start has seen these questions: its reward is about 0.93 at once, and
has little room to rise.  From an overasking start (configs/sft.py:overask, then
--config.policy.start_from) it does.
"""

import pathlib
import runpy

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """The run of configs/step_grpo.py of that name, without knowledge bases."""
  beside = pathlib.Path(__file__).with_name("step_grpo.py")
  c = runpy.run_path(str(beside))["get_config"](variant)
  c.data.kb = ""
  return c
