"""Safe reading of image files, and the image operations that encoders share.

Only `read_image_bytes` opens an image file, and only `load_image` decodes it.
Files come from crawls, so each is treated as hostile: its name, kind, size and
header are checked before a pixel is decoded; every failure is a `BadImage`.

Axes:  H W height and width in pixels
"""

import contextlib
import functools
import io
import math
import os
import re
import stat
import struct
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from r1router_jax.common.errors import UserError
from r1router_jax.common.files import (
  file_state,
  is_below,
  open_nonblocking,
)

# Formats that are decoded; Pillow's other decoders are less well tested.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 20 << 20
MAX_SIDE = 16_384
# Pillow warns of larger images; this limit is lower, so it is reached first.
MAX_PIXELS = 64_000_000
# Images of more pixels are reduced to at most half of that, one at a time.
MAX_WHOLE = 16_000_000
_large_image = threading.Lock()
_ORIENTATION = 0x0112  # A tag of Exif.
# The limit of `smart_resize` in Qwen2-VL's image processor.
MAX_ASPECT = 200

# Mean and standard deviation of CLIP's training images, in RGB.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Hidden and text-reversing characters, control characters, and what another
# system would read as a drive, a scheme, a home folder or a separator; half a
# surrogate pair, and a slash at the end.
_SUSPICIOUS_NAME = re.compile(
  r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\\:]|^~"
  "|[\ud800-\udfff]|/$"
)


class BadImage(UserError):
  """An image that cannot be used; the message names file, reason and cure."""


def resolve_path(name: str, root: str) -> str:
  """Return the path of the untrusted `name` below the folder `root`.

  Raises BadImage if it is suspicious, or leads out of `root`, be it by a link.
  """
  if not name or len(name) > 1000 or _SUSPICIOUS_NAME.search(name):
    cure = "Use a relative path below the image folder, without backslash, "
    cure += "colon or hidden characters."
    raise BadImage(f"{ascii(name)[:200]}: not a plain file name.  {cure}")
  # Free of links, so that a link inside the folder cannot lead out.
  path = os.path.realpath(os.path.join(root, name))
  if os.path.isabs(name) or not is_below(path, root):
    cure = "Copy the file below that folder, and name it relative to it."
    raise BadImage(f"{name!a}: leads out of {root}.  {cure}")
  return path


def load_image(
  path: str | os.PathLike, root: str | None = None
) -> UInt8[np.ndarray, "H W 3"]:
  """Load the first frame of an image: upright, RGB, transparency on white.

  One of more than `MAX_WHOLE` pixels is reduced.  A path is trusted, unless it
  is a name below the folder `root`.  A file that cannot be used, for any
  reason, raises BadImage.
  """
  path = os.fspath(path)
  if root is not None:
    path = resolve_path(path, root)
  data = read_image_bytes(path)
  try:
    # This reads the header alone; `_decode` decodes the pixels.
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_header(image)
    is_large = _reduction(image) > 1
    with _large_image if is_large else contextlib.nullcontext():
      return np.array(_decode(image))
  except Exception as error:  # Decoders fail in many ways; all mean one thing.
    limits = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS:,} in all"
    limits += f", {MAX_WHOLE:,} in a WEBP"
    cure = f"Give an intact PNG, JPEG or WEBP of {limits}."
    raise BadImage(f"{path!a}: {error}.  {cure}") from error


def check_image(path: str) -> None:
  """Decode an image, unless the same file was good before; see `load_image`."""
  _check_state(path, file_state(path))


@functools.lru_cache(maxsize=65536)
def _check_state(path: str, state: tuple[int, int] | None) -> None:
  del state  # A key of the cache.
  load_image(path)


def read_image_bytes(path: str) -> bytes:
  """Read a regular file of 1 to `MAX_BYTES` bytes, or raise BadImage."""
  try:
    with open(path, "rb", opener=open_nonblocking) as file:
      # The open file is examined, not its path, which may change in between.
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise BadImage(f"{path!a}: not a regular file.  Give an image file.")
      if not 0 < status.st_size <= MAX_BYTES:
        fault = f"has {status.st_size:,} bytes, wanted 1 to {MAX_BYTES:,}"
        raise BadImage(f"{path!a}: {fault}.  Save it again, smaller.")
      return file.read(MAX_BYTES)
  except BadImage:
    raise
  except (OSError, ValueError) as error:
    reason = getattr(error, "strerror", None) or error
    fault = f"{ascii(path)[:300]}: cannot be opened ({reason})"
    raise BadImage(f"{fault}.  Check path and permissions.") from error


def _check_header(image: Image.Image) -> None:
  """Refuse, before it is decoded, an image that might not fit in memory."""
  width, height = image.size
  small, large = sorted((width, height))
  # Decoding a WEBP takes four times the memory of other formats.
  limit = MAX_WHOLE if image.format == "WEBP" else MAX_PIXELS
  if small < 1 or large > MAX_SIDE or small * large > limit:
    raise ValueError(f"its size is {width} x {height}")
  if large > MAX_ASPECT * small:
    raise ValueError(f"{width} x {height} is an aspect ratio over {MAX_ASPECT}")


def _decode(image: Image.Image) -> Image.Image:
  """Return the pixels of an opened image: upright, in RGB, reduced if large."""
  # 1. JPEG is decoded at 1/2, 1/4 or 1/8 of its size, other formats whole.
  if (shrink := _reduction(image)) > 1:
    image.draft(image.mode, [side // shrink for side in image.size])
  image.load()
  # 2. Strips are converted one by one, as each copy takes memory.
  shrink, (width, height) = _reduction(image), image.size
  rgb = Image.new("RGB", (-(-width // shrink), -(-height // shrink)))
  for top in range(0, height, 16 * shrink):
    bottom = min(top + 16 * shrink, height)
    strip = _to_rgb(image.crop((0, top, width, bottom)))
    rgb.paste(strip.reduce(shrink), (0, top // shrink))
  # 3. Most images have no orientation; broken Exif is no fault of the pixels.
  with contextlib.suppress(KeyError, SyntaxError, struct.error):
    rgb.getexif()[_ORIENTATION] = image.getexif()[_ORIENTATION]
    ImageOps.exif_transpose(rgb, in_place=True)
  image.close()  # Frees its pixels.
  return rgb


def _reduction(image: Image.Image) -> int:
  """Return by how much the sides of an image have to be divided."""
  count = math.prod(image.size)
  return math.ceil((2 * count / MAX_WHOLE) ** 0.5) if count > MAX_WHOLE else 1


def _to_rgb(image: Image.Image) -> Image.Image:
  """Convert an image of any mode to RGB, with transparency shown on white."""
  if image.mode.startswith("I"):  # 16-bit gray, which `convert` would clip.
    gray = np.asarray(image)
    shown = np.where(gray == image.info.get("transparency"), 255, gray >> 8)
    image = Image.fromarray(shown.astype(np.uint8))
  elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
  return image.convert("RGB")


def resize_image(
  image: UInt8[np.ndarray, "H W 3"],
  height: int,
  width: int,
  method: int = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "height width 3"]:
  """Resize with Pillow's antialiasing; `method` is one of its numbers."""
  if image.shape[:2] == (height, width):
    return image
  return np.array(Image.fromarray(image).resize((width, height), method))


def stretch_to_square(
  image: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
  """Crop any gray border off an image, and stretch the rest to a square.

  Without border, and with equal proportions, two drawings of one thing line up.
  """
  # A pixel is border if it is within 8 levels of middle gray.
  shown = (np.abs(image.astype(np.int16) - 128) > 8).any(axis=-1)
  if shown.any():
    rows, columns = (np.flatnonzero(shown.any(axis=1 - i)) for i in (0, 1))
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return resize_image(image, side, side)


def center_crop(
  image: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
  """Resize the shorter side to `side` and crop the middle square, as CLIP does.

  Source: torchvision's `Resize` and `CenterCrop` for Pillow images.
  """
  shorter = min(image.shape[:2])
  height, width = (side * x // shorter for x in image.shape[:2])
  image = resize_image(image, height, width)
  # Python rounds halves to even numbers, as torchvision does.
  top, left = (round((x - side) / 2) for x in (height, width))
  return image[top : top + side, left : left + side]


def normalize_pixels(
  image: UInt8[np.ndarray, "H W 3"],
  mean: Sequence[float] = CLIP_MEAN,
  std: Sequence[float] = CLIP_STD,
) -> Float32[np.ndarray, "H W 3"]:
  """Scale pixels to [0, 1] and standardise each channel, by default as CLIP."""
  # A byte has 256 values, so a lookup gives the same bits with less work.
  levels = (np.arange(256) * (1 / 255)).astype(np.float32)
  table = (levels[:, None] - np.float32(mean)) / np.float32(std)
  return table[image, np.arange(3)]
