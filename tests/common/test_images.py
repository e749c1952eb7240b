"""Image files: hostile ones are refused, good ones are read."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from r1router_jax.common import images


def encode_image(image, kind, **options):
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def png_chunk(kind, data):
  crc = struct.pack(">I", zlib.crc32(kind + data))
  return struct.pack(">I", len(data)) + kind + data + crc


def make_png(width, height, raw=b"", extra=b"", depth=8, colour=2):
  # Width and height may be anything: the decoder believes the header.
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", header)
    + extra
    + png_chunk(b"IDAT", zlib.compress(raw, 9))
    + png_chunk(b"IEND", b"")
  )


GREEN = Image.new("RGB", (64, 48), (10, 200, 30))

JPEG, PNG = encode_image(GREEN, "JPEG"), encode_image(GREEN, "PNG")

# 80 MiB of letters in 80 kB, as metadata of an image.
BIG = zlib.compress(b"A" * (80 << 20), 9)


# A file of each kind that a crawl may contain, or an attacker may write.
BAD = {
  "bomb": make_png(60_000, 60_000, b"\0" * 1000),
  "real bomb": make_png(12_000, 12_000, b"\0" * (12_000 * 1501), b"", 1, 0),
  "huge sides": make_png(2**31 - 1, 2**31 - 1, b"\0"),
  "no width": make_png(0, 10),
  "strip": encode_image(Image.new("L", (1, 16_000)), "PNG"),
  "text bomb": make_png(8, 8, b"\0" * 200, png_chunk(b"zTXt", b"k\0\0" + BIG)),
  "profile bomb": make_png(
    8, 8, (b"\0" + b"\1" * 24) * 8, png_chunk(b"iCCP", b"k\0\0" + BIG)
  ),
  "half a PNG": PNG[: len(PNG) // 2],
  "half a JPEG": JPEG[: len(JPEG) // 2],
  "only a header": JPEG[:20],
  "flipped bits": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
  "empty": b"",
  "html": b"<html><script>alert(1)</script></html>",
  "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
  "noise": bytes(range(256)) * 20,
  "gif": encode_image(GREEN, "GIF"),
  "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
  "svg": b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
  "tiff": encode_image(GREEN, "TIFF"),
  "bmp": encode_image(GREEN, "BMP"),
  "pdf": b"%PDF-1.4\n%%EOF",
  "patched sides": JPEG.replace(
    struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500)
  ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_files_raise_bad_image(tmp_path, name):
  path = tmp_path / "image.png"
  path.write_bytes(BAD[name])
  with pytest.raises(images.BadImage, match="image.png.*[A-Z]"):
    images.load_image(path)


def test_odd_files_do_not_hang_or_fill_memory(tmp_path):
  # Opening a pipe blocks, and a sparse file of 3 GiB would fill memory.
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "folder").mkdir()
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with open(tmp_path / "sparse", "wb") as file:
    file.truncate(3 << 30)
  for name in ("pipe", "folder", "loop", "sparse", "absent", "n" * 300, "\0"):
    with pytest.raises(images.BadImage):
      images.load_image(str(tmp_path / name))
  with pytest.raises(images.BadImage, match="regular"):
    images.load_image("/dev/zero")


@pytest.mark.parametrize(
  "name",
  [
    *"../x.png /etc/passwd a/../../x link.png . ..\\x.png C:\\x.png".split(),
    *"~/x.png file:///etc/passwd http://127.0.0.1/x".split(),
    *("", "x" * 2000, "a\0b.png", "a\u202egnp.b", "a\u200b.png", "a\nb.png"),
    *("\ud800.png", "good.png/"),
  ],
)
def test_untrusted_names_cannot_leave_their_folder(tmp_path, name):
  # The target exists, so only the name can be refused.
  root = tmp_path / "root"
  root.mkdir()
  (tmp_path / "x.png").write_bytes(PNG)
  (root / "link.png").symlink_to(tmp_path / "x.png")
  (root / "good.png").write_bytes(PNG)
  with pytest.raises(images.BadImage):
    images.load_image(name, str(root))


def test_a_plain_name_below_the_folder_is_read(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "%2e x.png").write_bytes(PNG)
  assert images.load_image("a/%2e x.png", str(tmp_path)).shape == (48, 64, 3)


def good_files():
  """Return, by name, the bytes, the size and, if it is one, the colour."""
  exif = Image.Exif()
  exif[0x0112] = 6  # The tag of orientation: turned by a quarter.
  # An Exif block that cannot be parsed.
  garbage = b"\xff\xe1" + struct.pack(">H", 60) + b"Exif\0\0" + bytes(range(52))
  frames = [Image.new("RGB", (48, 64), (9, i, 0)) for i in range(3)]
  grey16 = Image.fromarray(np.full((64, 48), 40_000, np.uint16))
  pixel, one_bit = Image.new("RGB", (1, 1)), Image.new("1", (33, 33))
  clear = Image.new("LA", (32, 32), (100, 0))
  palette, cmyk = Image.new("P", (32, 32)), Image.new("CMYK", (32, 32))
  white, lossless = (255, 255, 255), encode_image(GREEN, "WEBP", lossless=True)
  profile = encode_image(GREEN, "JPEG", icc_profile=b"\1" * 200)
  return {
    "plain": (encode_image(GREEN, "PNG"), (48, 64), (10, 200, 30)),
    "webp": (lossless, (48, 64), (10, 200, 30)),
    "one pixel": (encode_image(pixel, "PNG"), (1, 1), (0, 0, 0)),
    "trailing": (PNG + b"<script>PK\x03\x04", (48, 64), (10, 200, 30)),
    "turned": (encode_image(GREEN, "PNG", exif=exif), (64, 48), (10, 200, 30)),
    "bad exif": (JPEG[:2] + garbage + JPEG[2:], (48, 64), None),
    "bad profile": (profile, (48, 64), None),
    "first frame": (
      encode_image(frames[0], "PNG", save_all=True, append_images=frames[1:]),
      (64, 48),
      (9, 0, 0),
    ),
    "cmyk": (encode_image(cmyk, "JPEG"), (32, 32), None),
    "16 bits": (encode_image(grey16, "PNG"), (64, 48), (156, 156, 156)),
    "clear": (encode_image(clear, "PNG"), (32, 32), white),
    "clear palette": (
      encode_image(palette, "PNG", transparency=0),
      (32, 32),
      white,
    ),
    "one bit": (encode_image(one_bit, "PNG"), (33, 33), (0, 0, 0)),
  }


@pytest.mark.parametrize("name", good_files())
def test_good_files_are_read_upright_in_rgb(tmp_path, name):
  data, shape, colour = good_files()[name]
  path = tmp_path / "misnamed.txt"  # The content decides, not the name.
  path.write_bytes(data)
  pixels = images.load_image(path)
  assert pixels.shape == (*shape, 3) and pixels.dtype == np.uint8
  if colour:
    assert (pixels == colour).all()


def exif_block(*entries, extra=b""):
  """Return an Exif block of (tag, type, count, value) entries."""
  body = struct.pack("<H", len(entries))
  body += b"".join(struct.pack("<HHI4s", *each) for each in entries)
  return b"II*\0\x08\0\0\0" + body + bytes(4) + extra


def orientation(number):
  return 0x0112, 3, 1, struct.pack("<HH", number, 0)


TURNED = orientation(6)
# Whether an image with such a block, good or broken, is turned.
EXIF = {
  "right": (exif_block(TURNED), True),
  "out of range": (exif_block(orientation(9)), False),
  "a text": (exif_block((0x0112, 2, 2, b"6\0\0\0")), False),
  "a ratio with 0": (
    exif_block(
      TURNED, (0x9204, 10, 1, b"\x26\0\0\0"), extra=struct.pack("<ii", -1, 0)
    ),
    True,
  ),
  "beyond its end": (
    exif_block(TURNED, (0x010F, 2, 400, b"\xff\xff\0\0")),
    True,
  ),
  "a text for an address": (exif_block(TURNED, (0x8769, 2, 4, b"abcd")), True),
  "zeros": (bytes(20), False),
  "half a header": (b"II", False),
  "garbage": (bytes(range(52)), False),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("name", EXIF)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it cannot read.
def test_broken_exif_is_no_fault_of_an_image(tmp_path, name, kind):
  block, is_turned = EXIF[name]
  if kind == "PNG":
    data = PNG[:33] + png_chunk(b"eXIf", block) + PNG[33:]
  else:
    block = b"Exif\0\0" + block
    marker = b"\xff\xe1" + struct.pack(">H", len(block) + 2)
    data = JPEG[:2] + marker + block + JPEG[2:]
  (tmp_path / "p").write_bytes(data)
  wanted = (64, 48, 3) if is_turned else (48, 64, 3)
  assert images.load_image(tmp_path / "p").shape == wanted


@pytest.mark.parametrize("number", range(1, 9))
def test_all_orientations_are_those_of_pillow(tmp_path, number):
  pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = number
  path = tmp_path / "p.png"
  Image.fromarray(pixels).save(path, exif=exif)
  with Image.open(path) as image:
    wanted = np.asarray(ImageOps.exif_transpose(image))
  np.testing.assert_array_equal(images.load_image(path), wanted)


@pytest.mark.parametrize("clear, shown", [(40_000, 255), (77, 156)])
def test_transparent_grey_of_16_bits_is_white(tmp_path, clear, shown):
  row = b"\0" + struct.pack(">2H", 20_000, 40_000)
  extra = png_chunk(b"tRNS", struct.pack(">H", clear))
  data = make_png(2, 2, row * 2, extra, depth=16, colour=0)
  (tmp_path / "p.png").write_bytes(data)
  pixels = images.load_image(tmp_path / "p.png")
  assert pixels[0, :, 0].tolist() == [78, shown]


# Whose bounds a large image exceeds, with less time than one of them takes.
SMALLER = dict(MAX_WHOLE=4096, MAX_PIXELS=16384)


@pytest.mark.parametrize(
  "mode, kind, options",
  [
    ("RGB", "JPEG", {}),
    ("RGB", "JPEG", dict(progressive=True)),
    ("L", "JPEG", {}),
    ("CMYK", "JPEG", {}),
    ("RGB", "PNG", {}),
    ("RGBA", "PNG", {}),
    ("LA", "PNG", {}),
    ("I;16", "PNG", {}),
    ("RGB", "PNG", dict(exif=b"II*\0\x08\0\0\0" + exif_block(TURNED)[8:])),
  ],
)
def test_large_images_are_reduced(tmp_path, monkeypatch, mode, kind, options):
  """A gradient, whose reduced form is known: that of Pillow's `resize`."""
  ramp = np.add.outer(np.arange(96), np.arange(128)) + 16
  if mode == "I;16":
    image = Image.fromarray((ramp * 256).astype(np.uint16))
  else:
    image = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
  image.save(tmp_path / "p", kind, **options)
  whole = images.load_image(tmp_path / "p")
  for name, value in SMALLER.items():
    monkeypatch.setattr(images, name, value)
  small = images.load_image(tmp_path / "p")
  shrink = len(whole) / len(small)
  assert small.size / 3 <= 4096 and 1.9 < shrink < 3.1
  size = small.shape[1::-1]
  wanted = Image.fromarray(whole).resize(size, Image.Resampling.BOX)
  assert np.abs(small.astype(int) - np.asarray(wanted)).max() <= 3


def test_a_webp_that_cannot_be_reduced_is_refused(tmp_path, monkeypatch):
  Image.new("RGB", (96, 64)).save(tmp_path / "p", "WEBP")
  monkeypatch.setattr(images, "MAX_WHOLE", 4096)
  with pytest.raises(images.BadImage, match="96 x 64.*4,096 in a WEBP"):
    images.load_image(tmp_path / "p")


MEASURE = """
import resource, sys
from r1router_jax.common import images
images.load_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shape = images.load_image(sys.argv[2]).shape
print(*shape, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode, kind", [("RGB", "JPEG"), ("RGBA", "PNG")])
def test_64_million_pixels_take_less_than_300_mb(tmp_path, mode, kind):
  paths = tmp_path / "small", tmp_path / "large"
  for path, side in zip(paths, (8, 8000), strict=True):
    Image.new(mode, (side, side)).save(path, kind, compress_level=1)
  task = [sys.executable, "-c", MEASURE, *map(str, paths)]
  done = subprocess.run(task, check=True, capture_output=True, text=True)
  *shape, kilobytes = map(int, done.stdout.split())
  assert shape[0] * shape[1] <= images.MAX_WHOLE and kilobytes < 300_000


def test_stretch_to_square_drops_a_grey_border():
  image = np.full((10, 12, 3), 130, np.uint8)
  image[2:8, 1:5] = np.arange(24).reshape(6, 4, 1)
  np.testing.assert_array_equal(
    images.stretch_to_square(image, 32),
    images.resize_image(image[2:8, 1:5], 32, 32),
  )
  grey = np.full((5, 7, 3), 128, np.uint8)
  assert (images.stretch_to_square(grey, 4) == 128).all()
