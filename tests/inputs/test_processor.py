"""Padded arrays, against loops and against transformers' positions."""

import dataclasses

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

GRIDS = [
  (),
  ((2, 2),),
  ((4, 6),),
  ((10, 2),),
  ((6, 6),),
  ((2, 2), (4, 6), (2, 4)),
]


def example(*grids, text=6, seed=0):
  return tiny_policy.encoded(
    np.random.default_rng(seed), tiny_policy.CONFIG, text, *grids
  )


def slow_positions(encoded):
  """The rule in the module's docstring, token by token."""
  image, merge = tiny_policy.tokenizer().picture, tiny_policy.VISION.merge
  grids = iter([p.grid for p in encoded.pictures])
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
  encoded = example(*grids, text=text)
  packed = tiny_policy.pack(tiny_policy.CONFIG, [encoded])
  wanted, cursor = slow_positions(encoded)
  n = len(encoded.ids)
  np.testing.assert_array_equal(packed.positions[0, :, :n], wanted)
  assert packed.start[0] == cursor
  np.testing.assert_array_equal(packed.mask[0], np.arange(32) < n)
  np.testing.assert_array_equal(packed.tokens[0, :n], encoded.ids)
  assert (packed.tokens[0, n:] == tiny_policy.tokenizer().pad).all()


@pytest.mark.oracle
@pytest.mark.parametrize("grids", GRIDS)
def test_positions_are_those_of_transformers(grids):
  torch = pytest.importorskip("torch")
  import types

  from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

  encoded = example(*grids)
  ids = torch.tensor([encoded.ids])
  model = types.SimpleNamespace(
    config=types.SimpleNamespace(
      vision_config=types.SimpleNamespace(
        spatial_merge_size=2, tokens_per_second=2
      )
    )
  )
  kind = theirs.Qwen2_5_VLModel
  model.get_vision_position_ids = lambda *args, **kwargs: (
    kind.get_vision_position_ids(model, *args, **kwargs)
  )
  positions, delta = kind.get_rope_index(
    model,
    ids,
    (ids == tiny_policy.tokenizer().picture).int(),
    image_grid_thw=torch.tensor([[1, *grid] for grid in grids]),
    attention_mask=torch.ones_like(ids),
  )
  packed = tiny_policy.pack(tiny_policy.CONFIG, [encoded])
  np.testing.assert_array_equal(
    packed.positions[0, :, : len(encoded.ids)], positions[:, 0].numpy()
  )
  assert packed.start[0] == len(encoded.ids) + int(delta)


def test_placeholders_point_at_their_own_picture():
  batch = [example(*grids, seed=n) for n, grids in enumerate(GRIDS)]
  packed = tiny_policy.pack(tiny_policy.CONFIG, batch)
  room, most = packed.inverse.shape[1], 3
  assert len(packed.patches) == most * len(batch)
  for row, encoded in enumerate(batch):
    at = np.array(encoded.ids) == tiny_policy.tokenizer().picture
    wanted = []
    for i in range(most):
      slot = most * row + i
      if i < len(encoded.pictures):
        picture = encoded.pictures[i]
        count = picture.grid[0] * picture.grid[1]
        assert packed.valid[slot].sum() == count
        np.testing.assert_array_equal(
          packed.patches[slot, :count], picture.patches
        )
        assert not packed.patches[slot, count:].any()
        wanted += [i * room + n for n in range(count // 4)]
      else:
        assert not packed.valid[slot].any() and not packed.patches[slot].any()
    found = packed.picture[row, : len(at)]
    np.testing.assert_array_equal(found[at], wanted)
    assert (found[~at] == -1).all()
    assert (packed.picture[row, len(at) :] == -1).all()


@pytest.mark.parametrize(
  "found, grids", [(3, [(4, 4)]), (5, [(4, 4)]), (1, []), (4, [(2, 4), (2, 6)])]
)
def test_placeholders_and_patches_must_agree(found, grids):
  good = example((4, 4))
  bad = dataclasses.replace(
    example(*grids), ids=[7] + [tiny_policy.tokenizer().picture] * found + [8]
  )
  with pytest.raises(ValueError, match=f"Row 1 .*{found} picture place"):
    tiny_policy.pack(tiny_policy.CONFIG, [good, bad])


def test_rows_are_split_over_devices_in_order():
  batch = [example(text=3 + n, seed=n) for n in range(5)]
  packed = tiny_policy.packer(lengths=(8, 16)).pack(batch, 4, 2)
  assert packed.tokens.shape == (4, 2, 8)
  assert packed.positions.shape == (4, 2, 3, 8)
  assert packed.patches.shape[1] == 0  # No picture: no room for one.
  rows = packed.tokens.reshape(8, 8)
  for row, encoded in enumerate([*batch, *[batch[0]] * 3]):
    np.testing.assert_array_equal(rows[row, : len(encoded.ids)], encoded.ids)
  whole = tiny_policy.packer(lengths=(8,)).pack(batch, 1, 5)
  np.testing.assert_array_equal(whole.tokens[0], rows[:5])


@pytest.mark.parametrize("text, length", [(4, 4), (5, 8), (8, 8), (9, 20)])
def test_batches_take_the_shortest_length_that_holds_them(text, length):
  packer = tiny_policy.packer(lengths=(4, 8, 20))
  batch = [example(text=2), example(text=text)]
  assert packer.length(batch[1].ids) == length
  assert packer.pack(batch, 1, 2).tokens.shape == (1, 2, length)


def test_windows_come_in_powers_of_two():
  shapes = {
    tiny_policy.pack(tiny_policy.CONFIG, [example(grid)]).gather.shape
    for grid in ((4, 4), (4, 12), (6, 6), (8, 8))
  }
  assert shapes == {(1, 1, 16), (1, 4, 16)}


def test_a_picture_file_becomes_placeholders_and_patches(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (21, 50, 3), np.uint8)
  path = str(tmp_path / "p.png")
  Image.fromarray(pixels).save(path)
  conversation = Conversation(
    "plan",
    "<|plan|>",
    (
      Segment("who is", "question"),
      Segment(path, "picture"),
      Segment("?", "question"),
    ),
  )
  packer = tiny_policy.packer(lengths=(40,))
  encoded = packer.encode(conversation)
  height, width = image_processor.smart_resize(21, 50, 8, 64, 4096)
  (picture,) = encoded.pictures
  assert picture.grid == (height // 4, width // 4)
  wanted, _ = image_processor.patches(
    images.resize(pixels, height, width), 4, 2, 2
  )
  np.testing.assert_array_equal(picture.patches, wanted)
  at = np.flatnonzero(np.array(encoded.ids) == tiny_policy.tokenizer().picture)
  np.testing.assert_array_equal(at, at[0] + np.arange(len(wanted) // 4))
  assert 2 < at[0] and at[-1] < len(encoded.ids) - 2  # Text on either side.
  # A file that has been replaced is read anew.
  Image.fromarray(np.flip(pixels, (0, 1))[:10]).save(path)
  assert packer.encode(conversation).pictures[0].grid != picture.grid
  with pytest.raises(images.BadImage, match="absent.png"):
    packer.encode(
      dataclasses.replace(
        conversation, user=(Segment(str(tmp_path / "absent.png"), "picture"),)
      )
    )
  with pytest.raises(images.BadImage, match="p.png.*reads texts alone"):
    dataclasses.replace(packer, vision=None).encode(conversation)
  with pytest.raises(PromptTooLong):
    tiny_policy.packer(lengths=(10,)).encode(conversation)


def test_a_passage_whose_picture_cannot_be_read_goes_without(tmp_path):
  good, bad = str(tmp_path / "p.png"), str(tmp_path / "no.png")
  Image.new("RGB", (16, 16), "red").save(good)
  pieces = lambda *paths: Conversation(
    "answer",
    "<|answer|>",
    tuple(
      piece
      for n, path in enumerate(paths)
      for piece in (
        Segment(path, "picture", ("image", n)),
        Segment("who is", "passage", ("image", n)),
      )
      if piece.text
    ),
  )
  packer = tiny_policy.packer(lengths=(60,))
  found = packer.encode(pieces(bad, good, bad + "2"))
  wanted = packer.encode(pieces("", good, ""))
  assert found.ids == wanted.ids and len(found.pictures) == 1
  assert [bad in reason for reason in found.unread] == [True, True]
  assert (wanted.unread, found.cut) == ((), 0)
  # Pictures go with their passages, in the prompt as in the batch.
  cut = dataclasses.replace(packer, passage_tokens=PassageTokens(image=2))
  one = cut.encode(pieces(good, good))
  assert one.cut == 2 + 6 and len(one.pictures) == 1
  tiny_policy.pack(
    tiny_policy.CONFIG, [packer.encode(pieces(good, good)), one], 60
  )


@pytest.mark.parametrize(
  "least, most, grids",
  [(64, 4096, ((16, 16), (2, 200), (4, 96))), (64, 64, ((2, 30), (2, 2)))],
)
def test_there_is_room_for_windows_of_any_picture(least, most, grids):
  packer = dataclasses.replace(
    tiny_policy.packer(), min_pixels=least, max_pixels=most
  )
  room = packer.windows()
  sides = [
    (n, int(n * ratio))
    for ratio in (1, 3, 20, 200)
    for n in (1, 2, 5, 9, 12, 30, 80, 300)
  ]
  needs = [
    qwen2_5_vl.windows(h // 4, w // 4, tiny_policy.VISION)
    for h, w in (
      image_processor.smart_resize(*size, 8, least, most) for size in sides
    )
  ]
  assert room / 2 < max(needs) <= room
  assert all(
    qwen2_5_vl.windows(*grid, tiny_policy.VISION) <= room for grid in grids
  )


def test_every_leaf_has_the_axis_of_devices():
  packed = tiny_policy.packer().pack([example((4, 6)), example()], 2, 3)
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
