import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r1router_jax.models import small_image_encoder
from r1router_jax.models.safetensors_io import BadWeights
from r1router_jax.retrieval.corpora import sources
from r1router_jax.retrieval.encoders import registry
from tools.georouter import train_image_encoder

SIDE = small_image_encoder.IMAGE_SIZE


@pytest.fixture(scope="module")
def params():
  return small_image_encoder.init_params(jax.random.key(0))


def noise(n, seed=0):
  pixels = np.random.default_rng(seed).uniform(size=(n, SIDE, SIDE, 3))
  return pixels.astype(np.float32)


def test_loss_matches_the_formula(params):
  x, y = noise(3), noise(3, 1)
  encoder = small_image_encoder.SmallImageEncoder()
  a, b = (
    np.asarray(encoder.apply({"params": params}, jnp.asarray(pixels)))
    for pixels in (x, y)
  )
  # Cross entropy of each row of logits, in both directions.
  wanted = []
  for i in range(3):
    for logits in (5 * a[i] @ b.T, 5 * b[i] @ a.T):
      wanted.append(np.log(np.exp(logits).sum()) - logits[i])
  got = train_image_encoder.loss(
    dict(encoder=params, log_scale=jnp.log(5.0)), jnp.asarray(x), jnp.asarray(y)
  )
  np.testing.assert_allclose(got, np.mean(wanted), rtol=1e-4)
  np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)


def test_swap_channels_changes_both_views_alike():
  flag = jnp.asarray(noise(1)[0])
  for seed in range(5):
    one, two = train_image_encoder.swap_channels(
      jax.random.key(seed), flag, flag
    )
    np.testing.assert_array_equal(one, two)


def test_warp_by_zero_changes_nothing():
  flag = jnp.asarray(noise(1)[0])
  same = train_image_encoder.warp_image(jax.random.key(0), flag, 0.0, 0.0, 0.0)
  np.testing.assert_allclose(same, flag, atol=1e-5)


def test_redrawn_map_has_its_land_in_place():
  land = np.full((SIDE, SIDE, 3), (0.3, 0.5, 0.7), np.float32)
  land[20:44, 16:48] = (0.9, 0.8, 0.5)
  redraw = jax.jit(train_image_encoder.redraw_map)
  for seed in range(8):
    drawn = np.asarray(redraw(jax.random.key(seed), jnp.asarray(land)))
    assert np.isfinite(drawn).all() and drawn.min() >= 0 and drawn.max() <= 1
    paper, edge = drawn[0, 0], drawn[14:50, 10:54]
    # Nothing is drawn outside of the land, and something inside.
    assert np.abs(drawn[:6] - paper).max() < 0.2
    assert np.abs(edge - paper).max() > 0.2


def test_saved_encoder_is_validated_when_it_is_loaded(params, tmp_path):
  path = str(tmp_path / "w.safetensors")
  small_image_encoder.save_params(path, params)
  again = small_image_encoder.load_params(path)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)
  tensors = load_file(path)
  for wrong in (
    {},
    tensors | {"more": np.ones(1, np.float16)},
    tensors | {"out/bias": np.ones(3, np.float16)},
  ):
    save_file(wrong, path)
    with pytest.raises(BadWeights, match="Train it again"):
      small_image_encoder.load_params(path)
  with open(path, "wb") as file:
    file.write(b"no weights")
  with pytest.raises(BadWeights, match="not an intact"):
    small_image_encoder.load_params(path)


def test_shipped_encoder_finds_unseen_images():
  package = importlib.resources.files("r1router_jax")
  figures = train_image_encoder.measure_recall(
    small_image_encoder.load_params(
      str(package / registry.IMAGE_ENCODER_WEIGHTS)
    ),
    {
      split: train_image_encoder.read_drawings(
        sources.georouter_folder(), split
      )
      for split in ("train", "val", "test")
    },
    "test",
  )
  assert figures["test_flags_recall@1"] >= 0.8
  assert figures["test_flags_recall@5"] >= 0.9
  assert figures["test_maps_recall@1"] >= 0.9
  assert figures["test_maps_recall@5"] >= 0.95
