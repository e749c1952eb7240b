"""A checkpoint read by two hosts: what each holds at the worst moment."""

import pathlib

import jax
import numpy as np
import pytest

from r1router_jax.models import hf_checkpoint, qwen2_5_vl
from tests import tiny_policy, two_processes

CONFIG = qwen2_5_vl.Config(
  vocab=24_000,
  hidden=512,
  mlp=2048,
  layers=10,
  heads=8,
  kv_heads=4,
  mrope_section=(32, 0, 0),
  vision=None,
)

CHILD = """
import re, sys, threading, time
import jax, numpy as np
from r1router_jax import parallel, pods
from r1router_jax.models import published
from tests import tiny
from tests.models.test_sharded_load import CONFIG
pods.join_pod()
# Pages of the file itself are the kernel's to drop, and are not counted.
held = lambda: int(re.search(
    r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
mesh = parallel.make_mesh(data=1, fsdp=4, tensor=1)
layout = parallel.by_path(tiny.shapes_of(CONFIG), mesh)
jax.block_until_ready(jax.device_put(np.ones(8), jax.local_devices()[0]))
peak, done = [before := held()], threading.Event()
def watch():
  while not done.wait(0.001):
    peak[0] = max(peak[0], held())
watcher = threading.Thread(target=watch)
watcher.start()
params = published.load(sys.argv[1], CONFIG, layout=layout.__getitem__)
jax.block_until_ready(params)
done.set()
watcher.join()
own = sum(shard.data.nbytes for x in jax.tree.leaves(params)
          for shard in x.addressable_shards)
first = float(params["embed"].addressable_shards[0].data[5, 0])
print("held", peak[0] - before, own, first)
"""


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path("/proc/self/status").exists(),
  reason="memory is read from /proc",
)
def test_a_host_holds_its_own_shards_and_one_tensor(tmp_path):
  rng = np.random.default_rng(0)
  tile = rng.normal(size=1 << 20).astype(np.float32)
  shapes = tiny_policy.shapes_of(CONFIG)
  params = jax.tree.map(lambda x: np.resize(tile, x.shape), shapes)
  hf_checkpoint.save(tmp_path / "model", params, CONFIG, shard_bytes=64 << 20)
  whole = sum(x.nbytes for x in jax.tree.leaves(params))
  largest = params["embed"].nbytes
  for text in two_processes.run(CHILD, tmp_path, str(tmp_path / "model")):
    held, own = (int(x) for x in text.split("held ")[1].split()[:2])
    assert 0.45 * whole < own < 0.55 * whole
    assert held < own + largest + (16 << 20), (held, own, largest)
    assert held < 0.8 * whole
    assert float(text.split()[-1]) in params["embed"][5]
