"""Commands in processes of their own, as a user starts them."""

import os
import subprocess
import sys

# The flags of conftest.py, but with one device, as on most machines.
ONE_DEVICE = {
  "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")
}


def command_line(module, *flags):
  """Return the arguments of `python -m r1router_jax.<module>`."""
  return [sys.executable, "-m", f"r1router_jax.{module}", *flags]


def run_command(module, *flags, **options):
  """Run a command to its end; return its exit code and its output."""
  return subprocess.run(
    command_line(module, *flags), capture_output=True, text=True, **options
  )
