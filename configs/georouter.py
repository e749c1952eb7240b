r"""The shortest run: Step-GRPO on GeoRouter, with what the package brings.

  python -m r1router_jax.train --config=configs/georouter.py:tiny \
      --workdir=runs/georouter

It is configs/step_grpo.py with gold passages, so nothing has to be built first.
The warm start has seen these questions: its reward is about 0.93 at once, and
can hardly rise.  From a start that asks too much (configs/sft.py:overask, then
--config.policy.start_from) it does.
"""

import pathlib
import runpy

import ml_collections as mlc


def get_config(variant: str = "tiny") -> mlc.ConfigDict:
  """Return that variant of configs/step_grpo.py, without knowledge bases."""
  # Config files are loaded by path, and so is the one beside this.
  path = pathlib.Path(__file__).with_name("step_grpo.py")
  c = runpy.run_path(str(path))["get_config"](variant)
  # Without knowledge bases each step shows its gold passage.
  c.data.kb_dir = ""
  return c
