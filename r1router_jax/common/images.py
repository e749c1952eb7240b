"""Safe reading of image files, and the image operations that encoders share.

Only `read_image_bytes` opens an image file, and only `load_image` decodes it.
Files come from crawls, so each is treated as hostile: its name, kind, size and
header are checked before a pixel is decoded; every failure is a `BadImage`.

Axes:  H W height and width in pixels
"""

import functools
import io
import os
import re
import stat

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

from r1router_jax.common.errors import UserError
from r1router_jax.common.files import file_state

# Formats that are decoded; Pillow's other decoders are less well tested.
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 20 << 20
MAX_SIDE = 16_384
# Pillow warns of larger images; this limit is lower, so it is reached first.
MAX_PIXELS = 64_000_000
# The limit of `smart_resize` in Qwen2-VL's image processor.
MAX_ASPECT = 200

# Mean and standard deviation of CLIP's training images, in RGB.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Hidden and text-reversing characters, control characters, and what another
# system would read as a drive, a scheme, a home folder or a separator.
_SUSPICIOUS_NAME = re.compile(
  r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\\:]|^~"
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
  # Both are free of links, so that a link inside the folder cannot lead out.
  folder = os.path.realpath(root)
  path = os.path.realpath(os.path.join(folder, name))
  if os.path.isabs(name) or not path.startswith(folder + os.sep):
    cure = "Copy the file below that folder, and name it relative to it."
    raise BadImage(f"{name!a}: leads out of {root}.  {cure}")
  return path


def load_image(
  path: str | os.PathLike, root: str | None = None
) -> UInt8[np.ndarray, "H W 3"]:
  """Load the first frame of an image: upright, RGB, transparency on white.

  A path is trusted, unless it is a name below the folder `root`.  A file that
  cannot be used, for any reason, raises BadImage.
  """
  path = os.fspath(path)
  if root is not None:
    path = resolve_path(path, root)
  data = read_image_bytes(path)
  try:
    # This reads the header alone; `image.load` decodes the pixels.
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_header(*image.size)
    image.load()
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))
  except Exception as error:  # Decoders fail in many ways; all mean one thing.
    limits = f"at most {MAX_SIDE} pixels a side and {MAX_PIXELS:,} in all"
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
    with open(path, "rb", opener=_open_nonblocking) as file:
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


def _open_nonblocking(path: str, flags: int) -> int:
  """Open a file without waiting, as a named pipe would make us do for ever."""
  return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_header(width: int, height: int) -> None:
  """Refuse, before it is decoded, an image that might not fit in memory."""
  small, large = sorted((width, height))
  if small < 1 or large > MAX_SIDE or small * large > MAX_PIXELS:
    raise ValueError(f"its size is {width} x {height}")
  if large > MAX_ASPECT * small:
    raise ValueError(f"{width} x {height} is an aspect ratio over {MAX_ASPECT}")


def _to_rgb(image: Image.Image) -> Image.Image:
  """Convert an image of any mode to RGB, with transparency shown on white."""
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image.convert("RGBA"))
  elif image.mode.startswith("I"):  # 16-bit gray, which `convert` would clip.
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  return image.convert("RGB")


def resize_image(
  image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Resize bicubically, with Pillow's antialiasing."""
  if image.shape[:2] == (height, width):
    return image
  method = Image.Resampling.BICUBIC
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
) -> Float32[np.ndarray, "H W 3"]:
  """Scale pixels to [0, 1] and standardise each channel, as CLIP does."""
  # A byte has 256 values, so a lookup gives the same bits with less work.
  levels = (np.arange(256) * (1 / 255)).astype(np.float32)
  table = (levels[:, None] - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
  return table[image, np.arange(3)]
