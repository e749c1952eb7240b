"""Eight pretend devices, and every annotated shape checked on every call."""

import os

from jaxtyping import install_import_hook

# Read when JAX is first imported, which therefore happens below this line.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

install_import_hook("r1router_jax", "beartype.beartype")
