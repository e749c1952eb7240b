"""Tests of CLIP's score fusion: what it reads of images and texts."""

import gzip
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from PIL import Image

from r1router_jax.common import images
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import clip
from r1router_jax.retrieval.encoders import batched_encoder, image_encoders

TOWERS = clip.TowerConfig(24, 2, 3), clip.TowerConfig(16, 2, 4)
SIZES = dict(image_size=12, patch_size=4, vocab=90, max_tokens=60, width=10)
CONFIG = clip.ClipConfig(*TOWERS, **SIZES)


def make_tokenizer():
  """Return a tokenizer of single letters, with start and end tokens."""
  # One id a letter; the start and the end have the highest.
  letters = {chr(c): c - 32 for c in range(32, 120)} | {"<s>": 88, "</s>": 89}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(letters, [], unk_token="."))
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    "<s> $A </s>", special_tokens=[("<s>", 88), ("</s>", 89)]
  )
  return made


@pytest.fixture(scope="module")
def params():
  inputs = jnp.zeros((1, 12, 12, 3)), jnp.zeros((1, 60), jnp.int32)
  return jax.jit(clip.Clip(CONFIG).init)(jax.random.key(0), *inputs)["params"]


@pytest.fixture
def image_path(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (31, 20, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "a.png")
  return str(tmp_path / "a.png")


def make_embedder(params):
  tokenizer = make_tokenizer()
  return image_encoders.ClipFusionEmbedder(CONFIG, params, tokenizer, "x")


def test_captions_that_are_too_long_are_noted(params, image_path):
  texts = ["short", "", "w" * 100, "w" * 57, "w" * 58]  # And "." and the ends.
  items = [
    Passage(f"p{i}", "image", x, image_path) for i, x in enumerate(texts)
  ]
  with batched_encoder.collect_cut() as cut_ids:
    make_embedder(params)([*items, Query("w" * 100)])
  assert cut_ids == ["p2", "p4"]


def test_vectors_are_sums_of_image_and_text(params, image_path):
  """The reference encodes one item at a time, from texts written out."""
  embed = make_embedder(params)
  items = [
    Passage("a", "image", '  "a bridge\r"', image_path),
    Passage("b", "image", "A bridge &amp; a town!"),
    Passage("c", "image", "", image_path),
    Query("which town?", image_path),
    Query("which town?"),
    Query("w" * 100),
  ]
  # The texts that CLIP reads, in lower case.
  cleaned = [
    "a bridge.",
    "a bridge & a town!",
    None,
    "retrieve a wikipedia image-description pair that provides evidence "
    "for the question of this image. which town?",
    "find a wikipedia image that answers this question. which town?",
    "find a wikipedia image that answers this question. " + "w" * 100,
  ]
  apply = jax.jit(clip.Clip(CONFIG).apply, static_argnames="method")

  def encode(x, method):
    x = jnp.asarray(x)[None]
    return np.asarray(apply({"params": params}, x, method=method))[0]

  image = Image.open(image_path).resize((12, 18), Image.Resampling.BICUBIC)
  pixels = np.asarray(image)[3:15] / 255
  pixels = ((pixels - images.CLIP_MEAN) / images.CLIP_STD).astype(np.float32)
  # Sum the vectors of what an item has, and normalize.
  wanted = []
  for item, text in zip(items, cleaned, strict=True):
    vector = np.zeros(CONFIG.width)
    if item.image:
      vector += encode(pixels, "encode_image")
    if text:
      ids = [88, *(ord(letter) - 32 for letter in text)][:59] + [89]
      ids = np.pad(np.array(ids, np.int32), (0, 60 - len(ids)))
      vector += encode(ids, "encode_text")
    wanted.append(vector / np.linalg.norm(vector))
  np.testing.assert_allclose(embed(items), wanted, rtol=1e-4, atol=1e-5)


def test_empty_item_has_a_zero_vector(params):
  embed = make_embedder(params)
  np.testing.assert_array_equal(embed([Passage("a", "image", " ")]), 0)
  assert embed([]).shape == (0, 10)


def test_center_crop_takes_the_middle():
  """Offsets are rounded half to even, as torchvision does."""
  noise = np.random.default_rng(0).integers(0, 256, (18, 17, 3), np.uint8)
  for height, width, top, left in (
    *((18, 12, 3, 0), (12, 17, 0, 2), (12, 12, 0, 0)),
    *((13, 12, 0, 0), (15, 12, 2, 0)),
  ):
    image = noise[:height, :width]
    wanted = image[top : top + 12, left : left + 12]
    np.testing.assert_array_equal(images.center_crop(image, 12), wanted)


@pytest.mark.oracle
def test_tokens_agree_with_openai(tmp_path):
  """Compares OpenAI's tokenizer with Hugging Face's from the same merges."""
  pytest.importorskip("torch")
  import transformers

  # Load OpenAI's tokenizer without the rest of open_clip, which needs torch.
  folder = pathlib.Path(importlib.util.find_spec("open_clip").origin).parent
  spec = importlib.util.spec_from_file_location("t", folder / "tokenizer.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  theirs = module.SimpleTokenizer()
  with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "rt") as file:
    # The merges that CLIP uses of a longer file.
    merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
  (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
  # Hugging Face writes the special tokens differently.
  encoder = json.dumps(theirs.encoder)
  for name in ("start", "end"):
    encoder = encoder.replace(f'"<{name}_of_text>"', f'"<|{name}oftext|>"')
  (tmp_path / "vocab.json").write_text(encoder)
  loaded = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
  ours = loaded.backend_tokenizer
  ours.enable_truncation(77)
  for text in (
    "A Bridge.",
    "the café’s “best” pâté — 3,14 km²",
    "x&amp;amp;y  \t\n z",
    "don't we'll I'M",
    "naïve Ångström 北京 🙂",
    "a" * 500,
    "word " * 100,
  ):
    wanted = theirs([text])[0].numpy()
    ids = ours.encode(image_encoders._clean_text(text)).ids
    assert ids == wanted[: wanted.argmax() + 1].tolist()
