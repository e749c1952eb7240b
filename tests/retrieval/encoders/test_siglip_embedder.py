"""SigLIP 2 as an embedder of pictures and texts, with random weights."""

import json

import numpy as np
import pytest
import tokenizers
from PIL import Image

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Query
from r1router_jax.models import siglip
from r1router_jax.retrieval.encoders import batched_encoder, registry
from tests.tiny_encoders import SIGLIP, random_tensors, write_tensors

# As published, but for the size; 2 is bilinear.
PREPROCESSOR = dict(
  do_rescale=True,
  image_mean=[0.5, 0.5, 0.5],
  image_std=[0.5, 0.5, 0.5],
  resample=2,
  rescale_factor=1 / 255,
  size=dict(height=13, width=13),
)
WORDS = ["<pad>", "</s>", "<unk>", "a", "flag", "is", "Red", "red", "who", "?"]


def make_tokenizer():
  """Return a cased tokenizer of words, with an end token, as Gemma's."""
  numbers = {word: i for i, word in enumerate(WORDS)}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, "<unk>"))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.post_processor = tokenizers.processors.TemplateProcessing(
    "$A </s>", special_tokens=[("</s>", 1)]
  )
  return made


@pytest.fixture
def folder(tmp_path):
  at = tmp_path / "siglip"
  at.mkdir()
  (at / "config.json").write_text(json.dumps(SIGLIP))
  (at / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
  make_tokenizer().save(str(at / "tokenizer.json"))
  axes = siglip.axis_sizes(siglip.read_config(str(at)))
  write_tensors(at, random_tensors(siglip.WEIGHT_MAP, axes))
  return at


@pytest.fixture
def image_path(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (31, 20, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "a.png")
  return str(tmp_path / "a.png")


def scale(vector):
  return vector / np.linalg.norm(vector)


@pytest.mark.oracle
def test_vectors_agree_with_transformers(folder, image_path):
  torch = pytest.importorskip("torch")
  import transformers
  from transformers.models.siglip import image_processing_pil_siglip

  model = transformers.SiglipModel.from_pretrained(folder).eval()
  processor = image_processing_pil_siglip.SiglipImageProcessorPil(
    **PREPROCESSOR
  )
  shown = processor(Image.open(image_path), return_tensors="pt")
  coder = make_tokenizer()
  coder.enable_truncation(9)
  coder.enable_padding(length=9, pad_id=0, pad_token="<pad>")
  with torch.no_grad():
    image = model.vision_model(**shown).pooler_output[0].numpy()

    def read(text):
      ids = torch.tensor([coder.encode(text).ids])
      return model.text_model(ids).pooler_output[0].numpy()

    red, who = read("a flag is red"), read("who ? " * 20)
  items = [
    Passage("a", "image", "", image_path),
    Passage("b", "image", "A flag is Red"),
    Passage("c", "image", "A flag is Red", image_path),
    Query("Who ? " * 20),
    Query("Who ? " * 20, image_path),
  ]
  fused = scale(scale(image) + scale(red))
  wanted = [scale(image), scale(red), fused, scale(who), scale(image)]
  embed = registry.get_embedder("siglip2", str(folder))
  np.testing.assert_allclose(embed(items), wanted, atol=1e-5)


def test_vectors_do_not_depend_on_other_items(folder, image_path):
  embed = registry.get_embedder("siglip2", str(folder))
  items = [Query("a flag"), Query("", image_path), Query("")]
  items += [Passage("a", "image", "red", image_path)]
  together = embed(items)
  for item, vector in zip(items, together, strict=True):
    np.testing.assert_allclose(embed([item])[0], vector, atol=1e-6)
  lengths = np.linalg.norm(together, axis=1)
  np.testing.assert_allclose(lengths, [1, 1, 0, 1], atol=1e-5)
  assert embed([]).shape == (0, 12)


def test_captions_that_are_too_long_are_noted(folder):
  texts = ["a " * 8, "a " * 9]
  items = [Passage(f"p{i}", "image", text) for i, text in enumerate(texts)]
  with batched_encoder.collect_cut() as cut_ids:
    registry.get_embedder("siglip2", str(folder))([*items, Query("a " * 9)])
  assert cut_ids == ["p1"]


def test_folder_of_pictures_is_known_by_its_config(folder):
  named = registry.get_embedder("siglip2", str(folder))
  found = registry.get_embedder("hf", str(folder))
  assert found.fingerprint == named.fingerprint
  np.testing.assert_array_equal(*(x([Query("red")]) for x in (found, named)))


def test_preprocessor_is_part_of_the_fingerprint(folder):
  first = registry.get_embedder("siglip2", str(folder)).fingerprint
  changed = PREPROCESSOR | dict(resample=3)
  (folder / "preprocessor_config.json").write_text(json.dumps(changed))
  assert registry.get_embedder("siglip2", str(folder)).fingerprint != first


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (dict(size=dict(height=13, width=14)), "size is not 13 x 13, as config"),
    (dict(size=13), "size is 13"),
    (dict(image_std=[0, 1, 1]), "image_std"),
    (dict(resample=9), "resample is 9"),
    (dict(do_rescale=False), "do_rescale is not true"),
  ],
)
def test_odd_preprocessor_is_refused(folder, change, words):
  path = folder / "preprocessor_config.json"
  path.write_text(json.dumps(PREPROCESSOR | change))
  with pytest.raises(UserError, match=words):
    registry.get_embedder("siglip2", str(folder))


def test_tokenizer_without_padding_is_refused(folder):
  text = (folder / "tokenizer.json").read_text().replace("<pad>", "<x>")
  (folder / "tokenizer.json").write_text(text)
  with pytest.raises(UserError, match="has no <pad>.  Copy that of SigLIP 2"):
    registry.get_embedder("siglip2", str(folder))
