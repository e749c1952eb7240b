"""Commands as a user starts them, in processes of their own or in this one."""

import os
import subprocess
import sys

from absl.testing import flagsaver

from r1router_jax import convert

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


def run_convert(source, workdir, **options):
  """Run `convert` in this process; needs the fixture parsed_flags."""
  with flagsaver.flagsaver(source=str(source), workdir=str(workdir), **options):
    convert.main([])
