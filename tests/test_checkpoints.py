import jax
import numpy as np
import optax

from r1router_jax import checkpoints


def params():
  rng = np.random.default_rng(0)
  return {"layers": {"q": {"w": rng.normal(size=(2, 3, 4)).astype(np.float32)}},
          "embed": rng.normal(size=(5, 3)).astype(np.float32)}


def assert_equal(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def state(step):
  tree = jax.tree.map(lambda x: x + step, params())
  return step, tree, optax.adamw(1e-3).init(tree)


def test_the_newest_state_comes_back(tmp_path):
  saved = checkpoints.Checkpoints(tmp_path)
  assert_equal(saved.restore(state(0)), state(0))  # Nothing was saved yet.
  for step in (10, 20, 30):
    saved.save(step, jax.tree.map(np.asarray, state(step)))
  saved.close()
  again = checkpoints.Checkpoints(tmp_path)
  assert_equal(again.restore(state(0)), state(30))
  again.close()
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"20", "30"}
