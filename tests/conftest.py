"""Gives all tests eight CPU devices, and checks every annotated shape."""

import atexit
import gc
import json
import os
import pathlib
import shutil
import sys
import tempfile

import pytest
from absl import flags
from jaxtyping import install_import_hook

# JAX reads these variables when it is first imported, so no import above does.
# Tests compile much and run each program once, so little is optimized.
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Eight devices share few cores, so a collective may wait long for the last.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  )
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# What one process compiled no other compiles, nor the next run.  Most programs
# are small, and reading one takes a tenth of compiling it.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/r1router_jax_tests")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


# Datasets are prepared for these tests alone; each worker replaces its own.
os.environ["TFDS_DATA_DIR"] = tempfile.mkdtemp("_tfds")
atexit.register(shutil.rmtree, os.environ["TFDS_DATA_DIR"], True)


install_import_hook("r1router_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def free_programs():
  """Drop compiled programs before a process has too many regions of memory.

  Each maps some, and Linux allows 65,530; without any left XLA aborts.
  """
  yield
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_text().count("\n") > 20_000:
    sys.modules["jax"].clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def kbs(tmp_path_factory):
  """Build small knowledge bases of some of GeoRouter's passages."""
  from r1router_jax import build_kb
  from r1router_jax.common.records import KBS
  from r1router_jax.data import georouter

  folder = tmp_path_factory.mktemp("kbs")
  for kb in KBS:
    source = folder / f"{kb}.jsonl"
    passages = georouter.load_passages(kb)[:40]
    rows = [json.dumps(dict(id=p.id, text=p.text)) + "\n" for p in passages]
    source.write_text("".join(rows))
    options = dict(embedder="minilm", hybrid=False)
    build_kb.build(
      build_kb.KbSpec(str(folder / kb), kb, str(source), **options)
    )
  return folder


@pytest.fixture
def parsed_flags():
  """Let a test read and set the flags of commands that it runs in-process."""
  # Flags that a first import defines while others are saved would be removed.
  import array_record.python.array_record_data_source  # noqa: F401

  # absl refuses both before it has parsed a command line.
  flags.FLAGS.mark_as_parsed()
  yield
  flags.FLAGS.unparse_flags()
