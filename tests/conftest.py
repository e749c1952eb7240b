"""Eight pretend devices, and every annotated shape checked on every call."""

import json
import os

import pytest
from jaxtyping import install_import_hook

# Read when JAX is first imported, which therefore happens below this line.
# Compiling takes most of the time, and what is compiled runs once.
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    # Eight devices share few cores: a collective waits for the last of them.
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
  )
)

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# As commands do: what one test compiled, another need not.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/r1router_jax")
)

os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


install_import_hook("r1router_jax", "beartype.beartype")


@pytest.fixture(scope="session")
def kbs(tmp_path_factory):
  """Some of the world, in knowledge bases of their own."""
  from r1router_jax import build_kb
  from r1router_jax.common.records import KBS
  from r1router_jax.data import georouter

  folder = tmp_path_factory.mktemp("kbs")
  for kb in KBS:
    source = folder / f"{kb}.jsonl"
    source.write_text(
      "".join(
        json.dumps(dict(id=p.id, text=p.text)) + "\n"
        for p in georouter.passages(kb)[:40]
      )
    )
    build_kb.build(str(folder / kb), kb, str(source), embedder="minilm")
  return folder
