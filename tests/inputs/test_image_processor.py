import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from r1router_jax.common import images
from r1router_jax.inputs import image_processor


@pytest.mark.parametrize(
  "factor, least, most",
  [(28, 3136, 1_003_520), (28, 7056, 7056), (8, 64, 1024)],
)
def test_no_picture_is_longer_than_the_longest(factor, least, most):
  """Against many sizes, the thinnest among them; some are as long."""
  rng, longest = np.random.default_rng(0), {}
  for ratio in [*np.exp(rng.uniform(0, np.log(200), 3000)), *[200] * 3000]:
    short = int(np.exp(rng.uniform(0, 8)))
    size = image_processor.smart_resize(
      short, int(short * ratio), factor, least, most
    )
    blocks, beside = sorted(side // factor for side in size)
    longest[blocks] = max(longest.get(blocks, 0), beside)
  bounds = {
    n: image_processor.longest_side(n, factor, least, most) for n in longest
  }
  assert all(longest[n] <= bounds[n] for n in longest)
  assert sum(longest[n] == bounds[n] for n in longest) > len(longest) / 2


def encode(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def chunk(kind, data):
  crc = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + crc


def png(width, height, raw=b"", extra=b"", depth=8, colour=2):
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", header)
    + extra
    + chunk(b"IDAT", zlib.compress(raw, 9))
    + chunk(b"IEND", b"")
  )


GREEN = Image.new("RGB", (64, 48), (10, 200, 30))

JPEG, PNG = encode(GREEN, "JPEG"), encode(GREEN, "PNG")

BIG = zlib.compress(b"A" * (80 << 20), 9)


BAD = {
  "bomb": png(60_000, 60_000, b"\0" * 1000),
  "real bomb": png(12_000, 12_000, b"\0" * (12_000 * 1501), b"", 1, 0),
  "huge sides": png(2**31 - 1, 2**31 - 1, b"\0"),
  "no width": png(0, 10),
  "strip": encode(Image.new("L", (1, 16_000)), "PNG"),
  "text bomb": png(8, 8, b"\0" * 200, chunk(b"zTXt", b"k\0\0" + BIG)),
  "profile bomb": png(
    8, 8, (b"\0" + b"\1" * 24) * 8, chunk(b"iCCP", b"k\0\0" + BIG)
  ),
  "half a PNG": PNG[: len(PNG) // 2],
  "half a JPEG": JPEG[: len(JPEG) // 2],
  "only a header": JPEG[:20],
  "flipped bits": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
  "empty": b"",
  "html": b"<html><script>alert(1)</script></html>",
  "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
  "noise": bytes(range(256)) * 20,
  "gif": encode(GREEN, "GIF"),
  "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
  "svg": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
  "tiff": encode(GREEN, "TIFF"),
  "bmp": encode(GREEN, "BMP"),
  "pdf": b"%PDF-1.4\n%%EOF",
  "patched sides": JPEG.replace(
    struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500)
  ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_file_is_one_kind_of_error(tmp_path, name):
  path = tmp_path / "picture.png"
  path.write_bytes(BAD[name])
  with pytest.raises(images.BadImage, match="picture.png.*[A-Z]"):
    images.load(path)


def test_odd_files_do_not_hang_or_fill_memory(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "folder").mkdir()
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with open(tmp_path / "sparse", "wb") as file:
    file.truncate(3 << 30)
  for name in ("pipe", "folder", "loop", "sparse", "absent", "n" * 300, "\0"):
    with pytest.raises(images.BadImage):
      images.load(str(tmp_path / name))
  with pytest.raises(images.BadImage, match="regular"):
    images.load("/dev/zero")


@pytest.mark.parametrize(
  "name",
  [
    "../x.png",
    "/etc/passwd",
    "a/../../x",
    "link.png",
    "",
    ".",
    "..\\x.png",
    "C:\\x.png",
    "~/x.png",
    "file:///etc/passwd",
    "http://127.0.0.1/x",
    "a\0b.png",
    "x" * 2000,
    "a\u202egnp.b",
    "a\u200b.png",
    "a\nb.png",
  ],
)
def test_names_cannot_leave_their_folder(tmp_path, name):
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "x.png").write_bytes(PNG)
  (root / "link.png").symlink_to(tmp_path / "x.png")
  with pytest.raises(images.BadImage):
    images.load(name, str(root))


def test_a_plain_name_below_the_folder_is_fine(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "%2e x.png").write_bytes(PNG)
  assert images.load("a/%2e x.png", str(tmp_path)).shape == (48, 64, 3)


def good():
  exif = Image.Exif()
  exif[0x0112] = 6  # Turned by a quarter.
  garbage = b"\xff\xe1" + struct.pack(">H", 60) + b"Exif\0\0" + bytes(range(52))
  frames = [Image.new("RGB", (48, 64), (9, i, 0)) for i in range(3)]
  grey16 = Image.fromarray(np.full((64, 48), 40_000, np.uint16))
  return {
    "plain": (encode(GREEN, "PNG"), (48, 64), (10, 200, 30)),
    "webp": (encode(GREEN, "WEBP", lossless=True), (48, 64), (10, 200, 30)),
    "one pixel": (encode(Image.new("RGB", (1, 1)), "PNG"), (1, 1), (0, 0, 0)),
    "trailing": (PNG + b"<script>PK\x03\x04", (48, 64), (10, 200, 30)),
    "turned": (encode(GREEN, "PNG", exif=exif), (64, 48), (10, 200, 30)),
    "bad exif": (JPEG[:2] + garbage + JPEG[2:], (48, 64), None),
    "bad profile": (
      encode(GREEN, "JPEG", icc_profile=b"\1" * 200),
      (48, 64),
      None,
    ),
    "first frame": (
      encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
      (64, 48),
      (9, 0, 0),
    ),
    "cmyk": (encode(Image.new("CMYK", (32, 32)), "JPEG"), (32, 32), None),
    "16 bits": (encode(grey16, "PNG"), (64, 48), (156, 156, 156)),
    "clear": (
      encode(Image.new("LA", (32, 32), (100, 0)), "PNG"),
      (32, 32),
      (255, 255, 255),
    ),
    "clear palette": (
      encode(Image.new("P", (32, 32)), "PNG", transparency=0),
      (32, 32),
      (255, 255, 255),
    ),
    "one bit": (encode(Image.new("1", (33, 33)), "PNG"), (33, 33), (0, 0, 0)),
  }


@pytest.mark.parametrize("name", good())
def test_good_file(tmp_path, name):
  data, shape, colour = good()[name]
  path = tmp_path / "misnamed.txt"  # The content decides, not the name.
  path.write_bytes(data)
  pixels = images.load(path)
  assert pixels.shape == (*shape, 3) and pixels.dtype == np.uint8
  if colour:
    assert (pixels == colour).all()


SIZES = [
  (480, 640),
  (37, 41),
  (10, 300),
  (300, 10),
  (1000, 333),
  (224, 224),
  (1500, 2100),
  (28, 28),
  (1, 1),
  (64, 64),
]


@pytest.mark.oracle
@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_transformers_bit_for_bit(size):
  pytest.importorskip("torch")
  from transformers.models.qwen2_vl import (
    image_processing_pil_qwen2_vl as oracle,
  )

  limits = dict(min_pixels=3136, max_pixels=1_003_520)
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
  wanted = oracle.Qwen2VLImageProcessorPil(**limits)(
    [Image.fromarray(image)], return_tensors="np"
  )
  resized = images.resize(
    image, *image_processor.smart_resize(*size, 28, **limits)
  )
  rows, grid = image_processor.patches(resized)
  assert [list(grid)] == wanted["image_grid_thw"].tolist()
  np.testing.assert_array_equal(rows, wanted["pixel_values"])


def test_patches_against_slow_loops():
  image = np.random.default_rng(1).integers(0, 256, (8, 16, 3), dtype=np.uint8)
  rows, grid = image_processor.patches(image, patch=2, temporal=2, merge=2)
  wanted = []
  for top in range(0, 8, 4):
    for left in range(0, 16, 4):
      for y in (top, top + 2):
        for x in (left, left + 2):
          square = image[y : y + 2, x : x + 2] / 255
          square = (square - images.MEAN) / images.STD
          wanted.append(
            np.concatenate(
              [np.tile(square[..., c].reshape(-1), 2) for c in range(3)]
            )
          )
  assert grid == (1, 4, 8)
  np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-6)


def test_sizes_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match="30 x 28.*factor=28"):
    image_processor.patches(np.zeros((30, 28, 3), np.uint8))
  with pytest.raises(images.BadImage, match="aspect"):
    image_processor.smart_resize(10, 4000)


def test_a_square_is_filled_by_what_is_shown():
  image = np.full((10, 12, 3), 130, np.uint8)
  image[2:8, 1:5] = np.arange(24).reshape(6, 4, 1)
  np.testing.assert_array_equal(
    images.square(image, 32), images.resize(image[2:8, 1:5], 32, 32)
  )
  grey = np.full((5, 7, 3), 128, np.uint8)
  assert (images.square(grey, 4) == 128).all()
