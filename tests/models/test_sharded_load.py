"""Peak memory of two hosts that read a checkpoint into shards."""

import pathlib

import jax
import numpy as np
import pytest

from r1router_jax.models import hf_checkpoint, qwen2_5_vl
from tests import tiny_policy, two_processes

SIZES = dict(hidden=512, mlp=2048, layers=10, heads=8, kv_heads=4)

CONFIG = qwen2_5_vl.Config(
  vocab=24_000, mrope_section=(32, 0, 0), vision=None, **SIZES
)

# A host: reads its shards while a thread watches its memory.
CHILD = (
  f"""
from r1router_jax.models.qwen2_5_vl import Config
CONFIG = {CONFIG!r}
"""
  + """
import re, sys, threading
import jax, numpy as np
from r1router_jax.models import hf_checkpoint
from r1router_jax.parallel import mesh as mesh_lib, multihost
from tests import tiny_policy

def resident_bytes():
  # Pages of the file itself are the kernel's to drop, and are not counted.
  status = open("/proc/self/status").read()
  return int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]) << 10

multihost.initialize_distributed()
mesh = mesh_lib.make_mesh(data=1, fsdp=4, tensor=1)
shardings = mesh_lib.tree_shardings(tiny_policy.param_shapes(CONFIG), mesh)
jax.block_until_ready(jax.device_put(np.ones(8), jax.local_devices()[0]))
before = resident_bytes()
peak, done = [before], threading.Event()

def watch():
  while not done.wait(0.001):
    peak[0] = max(peak[0], resident_bytes())

watcher = threading.Thread(target=watch)
watcher.start()
params = hf_checkpoint.load_params(sys.argv[1], CONFIG, shardings=shardings)
jax.block_until_ready(params)
done.set()
watcher.join()
own = sum(shard.data.nbytes for x in jax.tree.leaves(params)
          for shard in x.addressable_shards)
first = float(params["embed"].addressable_shards[0].data[5, 0])
print("held", peak[0] - before, own, first)
"""
)


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(),
  reason="memory is read from /proc",
)
def test_a_host_holds_its_own_shards_and_one_tensor(tmp_path):
  rng = np.random.default_rng(0)
  tile = rng.normal(size=1 << 20).astype(np.float32)
  shapes = tiny_policy.param_shapes(CONFIG)
  params = jax.tree.map(lambda x: np.resize(tile, x.shape), shapes)
  folder = tmp_path / "model"
  hf_checkpoint.save_params(folder, params, CONFIG, shard_bytes=64 << 20)
  whole = sum(x.nbytes for x in jax.tree.leaves(params))
  largest = params["embed"].nbytes
  outputs = two_processes.run_two_processes(CHILD, tmp_path, str(folder))
  for text in outputs:
    held, own, first = text.split("held ")[1].split()[:3]
    assert 0.45 * whole < int(own) < 0.55 * whole
    # 16 MiB for everything else.
    assert int(held) < int(own) + largest + (16 << 20), (held, own, largest)
    assert int(held) < 0.8 * whole
    assert float(first) in params["embed"][5]
