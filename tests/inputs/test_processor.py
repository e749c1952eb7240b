"""The processor's arrays, against slow loops and transformers' positions."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common import images
from r1router_jax.inputs import image_processor, processor
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import qwen2_5_vl
from r1router_jax.protocol.messages import Conversation, PassageTokens, Segment
from tests import tiny_policy
from tests.tiny_policy import MODEL_CONFIG

GRIDS = [(), *(((h, w),) for h, w in [(2, 2), (4, 6), (10, 2), (6, 6)])]
GRIDS += [((2, 2), (4, 6), (2, 4))]


def random_prompt(*grids, text=6, seed=0):
  return tiny_policy.random_prompt(
    np.random.default_rng(seed), MODEL_CONFIG, text, *grids
  )


def slow_positions(encoded):
  """Apply the rule in the module's docstring, token by token."""
  image, merge = tiny_policy.tokenizer().image_id, tiny_policy.VISION.merge
  grids = iter([p.grid for p in encoded.images])
  out, cursor, i = [], 0, 0
  while i < len(encoded.ids):
    if encoded.ids[i] == image:
      h, w = (n // merge for n in next(grids))
      for row in range(h):
        for column in range(w):
          out.append((cursor, cursor + row, cursor + column))
      cursor += max(h, w)
      i += h * w
    else:
      out.append((cursor, cursor, cursor))
      cursor += 1
      i += 1
  return np.array(out).T, cursor


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("text", [3, 8])
def test_positions_by_hand(grids, text):
  encoded = random_prompt(*grids, text=text)
  packed = tiny_policy.collate(MODEL_CONFIG, [encoded])
  wanted, cursor = slow_positions(encoded)
  n = len(encoded.ids)
  np.testing.assert_array_equal(packed.positions[0, :, :n], wanted)
  assert packed.next_position[0] == cursor
  np.testing.assert_array_equal(packed.mask[0], np.arange(32) < n)
  np.testing.assert_array_equal(packed.tokens[0, :n], encoded.ids)
  assert (packed.tokens[0, n:] == tiny_policy.tokenizer().pad_id).all()


@pytest.mark.oracle
@pytest.mark.parametrize("grids", GRIDS)
def test_positions_are_those_of_transformers(grids):
  torch = pytest.importorskip("torch")
  import types

  from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

  encoded = random_prompt(*grids)
  ids = torch.tensor([encoded.ids])
  vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
  config = types.SimpleNamespace(vision_config=vision)
  model = types.SimpleNamespace(config=config)
  # `get_rope_index` reads little of its model: a stand-in suffices.
  kind = theirs.Qwen2_5_VLModel
  model.get_vision_position_ids = partial(kind.get_vision_position_ids, model)
  shown = (ids == tiny_policy.tokenizer().image_id).int()
  options = dict(image_grid_thw=torch.tensor([[1, *grid] for grid in grids]))
  options["attention_mask"] = torch.ones_like(ids)
  positions, delta = kind.get_rope_index(model, ids, shown, **options)
  packed = tiny_policy.collate(MODEL_CONFIG, [encoded])
  np.testing.assert_array_equal(
    packed.positions[0, :, : len(encoded.ids)], positions[:, 0].numpy()
  )
  assert packed.next_position[0] == len(encoded.ids) + int(delta)


def test_placeholders_point_at_their_own_image():
  batch = [random_prompt(*grids, seed=n) for n, grids in enumerate(GRIDS)]
  packed = tiny_policy.collate(MODEL_CONFIG, batch)
  # Each row has room for as many images as the last, which has three.
  room, most = packed.inverse.shape[1], 3
  assert len(packed.patches) == most * len(batch)
  for row, encoded in enumerate(batch):
    at = np.array(encoded.ids) == tiny_policy.tokenizer().image_id
    wanted = []
    for i in range(most):
      slot = most * row + i
      if i < len(encoded.images):
        image = encoded.images[i]
        count = image.grid[0] * image.grid[1]
        assert packed.valid[slot].sum() == count
        np.testing.assert_array_equal(
          packed.patches[slot, :count], image.patches
        )
        assert not packed.patches[slot, count:].any()
        wanted += [i * room + n for n in range(count // 4)]
      else:
        assert not packed.valid[slot].any() and not packed.patches[slot].any()
    found = packed.image_token[row, : len(at)]
    np.testing.assert_array_equal(found[at], wanted)
    assert (found[~at] == -1).all()
    assert (packed.image_token[row, len(at) :] == -1).all()


@pytest.mark.parametrize(
  "found, grids", [(3, [(4, 4)]), (5, [(4, 4)]), (1, []), (4, [(2, 4), (2, 6)])]
)
def test_placeholders_and_patches_must_agree(found, grids):
  good = random_prompt((4, 4))
  ids = [7, *[tiny_policy.tokenizer().image_id] * found, 8]
  bad = replace(random_prompt(*grids), ids=ids)
  with pytest.raises(ValueError, match=f"Row 1 .*{found} image place"):
    tiny_policy.collate(MODEL_CONFIG, [good, bad])


def test_rows_are_split_over_shards_in_order():
  batch = [random_prompt(text=3 + n, seed=n) for n in range(5)]
  packed = tiny_policy.processor(lengths=(8, 16)).collate(batch, 4, 2)
  assert packed.tokens.shape == (4, 2, 8)
  assert packed.positions.shape == (4, 2, 3, 8)
  assert packed.patches.shape[1] == 0  # No image: no room for one.
  # Three rows are left over, and repeat the first prompt.
  rows = packed.tokens.reshape(8, 8)
  for row, encoded in enumerate([*batch, *[batch[0]] * 3]):
    np.testing.assert_array_equal(rows[row, : len(encoded.ids)], encoded.ids)
  whole = tiny_policy.processor(lengths=(8,)).collate(batch, 1, 5)
  np.testing.assert_array_equal(whole.tokens[0], rows[:5])


@pytest.mark.parametrize("text, length", [(4, 4), (5, 8), (8, 8), (9, 20)])
def test_batches_take_the_shortest_length_that_holds_them(text, length):
  reader = tiny_policy.processor(lengths=(4, 8, 20))
  batch = [random_prompt(text=2), random_prompt(text=text)]
  assert reader.padded_length(batch[1].ids) == length
  assert reader.collate(batch, 1, 2).tokens.shape == (1, 2, length)


def test_windows_come_in_powers_of_two():
  prompts = map(random_prompt, [(4, 4), (4, 12), (6, 6), (8, 8)])
  packed = [tiny_policy.collate(MODEL_CONFIG, [each]) for each in prompts]
  shapes = {each.gather.shape for each in packed}
  # 1, 3 -> 4, 4 and 4 windows of 4 x 4 patches.
  assert shapes == {(1, 1, 16), (1, 4, 16)}


def test_an_image_file_becomes_placeholders_and_patches(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (21, 50, 3), np.uint8)
  path = str(tmp_path / "p.png")
  Image.fromarray(pixels).save(path)
  who, what = Segment("who is", "question"), Segment("?", "question")
  user = (who, Segment(path, "image"), what)
  conversation = Conversation("plan", "<|plan|>", user)
  reader = tiny_policy.processor(lengths=(40,))
  encoded = reader.encode(conversation)
  # The limits of the tiny policy: blocks of 8 pixels, 64 to 4096 in all.
  height, width = image_processor.smart_resize(21, 50, 8, 64, 4096)
  (image,) = encoded.images
  assert image.grid == (height // 4, width // 4)
  resized = images.resize_image(pixels, height, width)
  wanted, _ = image_processor.extract_patches(resized, 4, 2, 2)
  np.testing.assert_array_equal(image.patches, wanted)
  at = np.flatnonzero(np.array(encoded.ids) == tiny_policy.tokenizer().image_id)
  np.testing.assert_array_equal(at, at[0] + np.arange(len(wanted) // 4))
  assert 2 < at[0] and at[-1] < len(encoded.ids) - 2  # Text on either side.
  # A file that has been replaced is read again.
  Image.fromarray(np.flip(pixels, (0, 1))[:10]).save(path)
  assert reader.encode(conversation).images[0].grid != image.grid
  with pytest.raises(images.BadImage, match="absent.png"):
    absent = (Segment(str(tmp_path / "absent.png"), "image"),)
    reader.encode(replace(conversation, user=absent))
  with pytest.raises(images.BadImage, match="p.png.*reads texts alone"):
    replace(reader, vision=None).encode(conversation)
  with pytest.raises(PromptTooLong):
    tiny_policy.processor(lengths=(10,)).encode(conversation)


def test_a_passage_whose_image_cannot_be_read_goes_without(tmp_path):
  good, bad = str(tmp_path / "p.png"), str(tmp_path / "no.png")
  Image.new("RGB", (16, 16), "red").save(good)

  def show_passages(*paths):
    segments = []
    for n, path in enumerate(paths):
      if path:
        segments.append(Segment(path, "image", ("image", n)))
      segments.append(Segment("who is", "passage", ("image", n)))
    return Conversation("answer", "<|answer|>", tuple(segments))

  reader = tiny_policy.processor(lengths=(60,))
  # Two of three images are missing; all three passages stay.
  found = reader.encode(show_passages(bad, good, bad + "2"))
  wanted = reader.encode(show_passages("", good, ""))
  assert found.ids == wanted.ids and len(found.images) == 1
  assert [bad in reason for reason in found.unread_images] == [True, True]
  assert (wanted.unread_images, found.truncated_tokens) == ((), 0)
  # Images go with their passages, in the prompt as in the batch.
  cut = replace(reader, passage_tokens=PassageTokens(image=2))
  one = cut.encode(show_passages(good, good))
  assert one.truncated_tokens == 2 + 6 and len(one.images) == 1
  both = reader.encode(show_passages(good, good))
  tiny_policy.collate(MODEL_CONFIG, [both, one], 60)


def test_marker_is_encoded_as_trusted_text():
  reader = replace(tiny_policy.processor(lengths=(60,)), vision=None)
  marker = "<|im_end|>"  # A token of its own in templates alone.
  for source, count in (("image", 1), ("question", 0)):
    user = Segment("Q: ", "template"), Segment(marker, source)
    prompt = Conversation("plan", "<|plan|>", user).replace_images(marker)
    ids = reader.encode(prompt).ids
    assert ids.count(reader.tokenizer.eos_id) == count


def test_policy_of_texts_without_a_marker_names_the_cure():
  reader = replace(tiny_policy.processor(lengths=(60,)), vision=None)
  prompt = Conversation("plan", "<|plan|>", (Segment("p.png", "image"),))
  with pytest.raises(images.BadImage, match="texts alone.* set image_marker"):
    reader.encode(prompt)


@pytest.mark.parametrize(
  "least, most, grids",
  [(64, 4096, ((16, 16), (2, 200), (4, 96))), (64, 64, ((2, 30), (2, 2)))],
)
def test_there_is_room_for_windows_of_any_image(least, most, grids):
  reader = replace(tiny_policy.processor(), min_pixels=least, max_pixels=most)
  room = reader.max_windows()
  count = partial(qwen2_5_vl.count_windows, config=tiny_policy.VISION)
  needs = []
  for ratio in (1, 3, 20, 200):
    for side in (1, 2, 5, 9, 12, 30, 80, 300):
      size = side, int(side * ratio), 8, least, most
      h, w = image_processor.smart_resize(*size)
      needs.append(count(h // 4, w // 4))
  assert room / 2 < max(needs) <= room
  assert all(count(*grid) <= room for grid in grids)


def test_every_leaf_has_a_leading_axis_of_shards():
  prompts = [random_prompt((4, 6)), random_prompt()]
  packed = tiny_policy.processor().collate(prompts, 2, 3)
  assert {x.shape[0] for x in jax.tree.leaves(packed)} == {2}


@pytest.mark.parametrize("sizes, length", [([1, 4], 4), ([5], 8), ([3, 11], 8)])
def test_responses_are_padded_or_cut(sizes, length):
  rows = [list(range(10, 10 + n)) for n in sizes]
  ids, mask = processor.pad_responses(rows, length, pad=1)
  assert ids.shape == mask.shape == (len(rows), length)
  for row, response in enumerate(rows):
    assert ids[row][mask[row]].tolist() == response[:length]
    assert (ids[row][~mask[row]] == 1).all()
    assert (np.diff(mask[row].astype(int)) <= 0).all()


def test_images_that_are_kept_are_bounded_in_bytes(tmp_path):
  cache = processor.Processor._read_image.cache
  assert cache.maxsize == 1 << 30
  reader, before = tiny_policy.processor(), cache.currsize
  kept = []
  for n in range(3):
    Image.new("RGB", (24, 16 + 8 * n)).save(tmp_path / f"{n}.png")
    kept.append(reader._load_image(str(tmp_path / f"{n}.png")))
  assert cache.currsize - before == sum(x.patches.nbytes for x in kept)
  assert reader._load_image(str(tmp_path / "0.png")) is kept[0]
  # Other pixels, also of the same size, have another digest.
  Image.new("RGB", (24, 16), "red").save(tmp_path / "red.png")
  red = reader._load_image(str(tmp_path / "red.png"))
  assert red.digest != kept[0].digest
