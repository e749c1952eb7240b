"""Pictures: files to pixels, safely; pixels to Qwen2.5-VL's patches.

`read` is the only place where a picture file is opened, and `load` where it is
decoded.  Files come from crawls, so each is treated as hostile: its name, kind,
size and header are checked before a pixel is decoded, and every way to fail is
one `BadImage`.

`patches` cuts a picture into p x p squares, each repeated T times in time (a
still picture is a film of T equal frames) and flattened as (channel, time, row,
column).  Rows come in merge-block order: m x m neighbours, which the vision
tower merges into one token, stand next to each other.

Axes:  H W pixels   h w patches of p x p pixels   m patches per side of a block
       P = h w patches   D = 3 T p p numbers of a patch
Source: the Qwen2-VL image processor of Hugging Face transformers (Pillow
backend), which the tests ask for equal bits.
"""

import io
import os
import re
import stat

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")

MAX_BYTES = 20 << 20

MAX_SIDE = 16_384

MAX_PIXELS = 64_000_000  # Below Pillow's own alarm, so ours speaks first.

MAX_ASPECT = 200  # The limit of Qwen2-VL's `smart_resize`.


# CLIP's statistics of natural pictures, in RGB.
MEAN = (0.48145466, 0.4578275, 0.40821073)

STD = (0.26862954, 0.26130258, 0.27577711)


# Hidden and text-reversing characters, control characters, and what another
# system would read as a drive, a scheme, a home folder or a separator.
_SUSPECT = re.compile(
  r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\\:]|^~"
)


class BadImage(ValueError):
  """A picture that cannot be used; the message names file, reason and cure."""


def resolve(name: str, root: str) -> str:
  """The path of the untrusted `name` below the folder `root`.

  Raises:
    BadImage: where the name is odd, or leads (by a link, too) out of `root`.
  """
  if not name or len(name) > 1000 or _SUSPECT.search(name):
    raise BadImage(
      f"{ascii(name)[:200]}: not a plain file name.  Use a relative path "
      "below the pictures' folder, without backslash, colon or hidden "
      "characters."
    )
  folder = os.path.realpath(root)
  path = os.path.realpath(os.path.join(folder, name))
  if os.path.isabs(name) or not path.startswith(folder + os.sep):
    raise BadImage(
      f"{name!a}: leads out of {root}.  Pictures must lie below that "
      "folder; copy the file there and name it relative to it."
    )
  return path


def load(
  path: str | os.PathLike, root: str | None = None
) -> UInt8[np.ndarray, "H W 3"]:
  """The first frame of a picture: upright, RGB, transparency shown on white.

  Args:
    path: a path; where `root` is given, an untrusted name below it.
    root: the folder that the picture must not leave, or None to trust `path`.

  Raises:
    BadImage: whatever is wrong with the file.
  """
  path = os.fspath(path)
  if root is not None:
    path = resolve(path, root)
  data = read(path)
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_header(*image.size)
    image.load()
    return np.array(_to_rgb(ImageOps.exif_transpose(image)))
  except Exception as error:  # Decoders fail in many ways; all mean one thing.
    raise BadImage(
      f"{path!a}: {error}.  Give an intact PNG, JPEG or WEBP of at most "
      f"{MAX_SIDE} pixels a side and {MAX_PIXELS:,} in all."
    ) from error


def read(path: str) -> bytes:
  """The bytes of a regular file of a sane size.

  Raises:
    BadImage: where it is none.
  """
  try:
    # Non-blocking, or opening a named pipe would wait for ever.
    with open(
      path,
      "rb",
      opener=lambda path, flags: os.open(
        path, flags | getattr(os, "O_NONBLOCK", 0)
      ),
    ) as file:
      status = os.fstat(file.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise BadImage(f"{path!a}: not a regular file.  Give a picture file.")
      if not 0 < status.st_size <= MAX_BYTES:
        raise BadImage(
          f"{path!a}: has {status.st_size:,} bytes, wanted 1 to "
          f"{MAX_BYTES:,}.  Save it again, smaller."
        )
      return file.read(MAX_BYTES)
  except (OSError, ValueError) as error:
    if isinstance(error, BadImage):
      raise
    reason = getattr(error, "strerror", None) or error
    raise BadImage(
      f"{ascii(path)[:300]}: cannot be opened ({reason}).  Check the path "
      "and its permissions."
    ) from error


def _check_header(width: int, height: int) -> None:
  """Refuses, before anything is decoded, what would not fit in memory."""
  small, large = sorted((width, height))
  if small < 1 or large > MAX_SIDE or small * large > MAX_PIXELS:
    raise ValueError(f"its size is {width} x {height}")
  if large > MAX_ASPECT * small:
    raise ValueError(
      f"its size {width} x {height} has an aspect ratio over {MAX_ASPECT}"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  elif image.mode.startswith("I"):  # 16-bit grey; `convert` would clip it.
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  return image.convert("RGB")


def resize(
  image: UInt8[np.ndarray, "H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
  """Bicubic, with Pillow's antialiasing."""
  if image.shape[:2] == (height, width):
    return image
  return np.array(
    Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  )


def square(
  image: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
  """The picture stretched to a square, less any grey border around it.

  Small pictures often come centred in a grey square.  Without that border, and
  with all proportions alike, drawings of one thing lie over each other.
  """
  shown = (np.abs(image.astype(np.int16) - 128) > 8).any(axis=-1)
  if shown.any():
    rows, columns = (np.flatnonzero(shown.any(axis=1 - i)) for i in (0, 1))
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  return resize(image, side, side)


def centre(
  image: UInt8[np.ndarray, "H W 3"], side: int
) -> UInt8[np.ndarray, "side side 3"]:
  """The middle square of a picture whose shorter side is resized, as in CLIP.

  Source: torchvision (`Resize`, `CenterCrop`), for pictures of Pillow.
  """
  shorter = min(image.shape[:2])
  height, width = (side * x // shorter for x in image.shape[:2])
  image = resize(image, height, width)
  top, left = (round((x - side) / 2) for x in (height, width))
  return image[top : top + side, left : left + side]


def normalise(
  image: UInt8[np.ndarray, "H W 3"],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float32[np.ndarray, "H W 3"]:
  """Pixels scaled to [0, 1], less `mean`, over `std`, each per channel."""
  # A byte has 256 values, so normalising is a look-up: equal bits, less work.
  levels = (np.arange(256) * (1 / 255)).astype(np.float32)
  table = (levels[:, None] - np.float32(mean)) / np.float32(std)
  return table[image, np.arange(3)]
