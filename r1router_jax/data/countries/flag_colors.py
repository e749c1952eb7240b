"""Names the colors of a flag as questions show it: round, on a gray square."""

import numpy as np
import PIL.Image

PARTS = ("top", "bottom", "left", "right")

_SIZE = 64  # Pixels a side.

# Ranges of hue, saturation and value, each between 0 and 1.
_COLORS = {
  "red": ((0.94, 1.04), (0.5, 1.0), (0.4, 1.0)),
  "green": ((0.22, 0.46), (0.35, 1.0), (0.2, 1.0)),
  "blue": ((0.50, 0.72), (0.4, 1.0), (0.25, 1.0)),
  "yellow": ((0.10, 0.18), (0.5, 1.0), (0.6, 1.0)),
  "white": ((0.0, 1.0), (0.0, 0.12), (0.85, 1.0)),
  "black": ((0.0, 1.0), (0.0, 1.0), (0.0, 0.25)),
}


def color_shares(image: PIL.Image.Image, part: str = "all") -> dict[str, float]:
  """Return the share of each named color in a round flag, or a part of it."""
  y, x = np.mgrid[:_SIZE, :_SIZE] - (_SIZE - 1) / 2
  inside = np.hypot(x, y) < _SIZE / 2 - 1
  inside &= {
    "all": True,
    "top": y < -_SIZE / 3.2,
    "bottom": y > _SIZE / 3.2,
    "left": x < -_SIZE / 3.2,
    "right": x > _SIZE / 3.2,
  }[part]
  hsv = np.asarray(image.convert("HSV"), np.float32)[inside] / 255
  hue, saturation, value = hsv.T
  shares = {}
  for name, (hues, saturations, values) in _COLORS.items():
    near = (hue >= hues[0]) & (hue <= hues[1])
    near |= (hue + 1 >= hues[0]) & (hue + 1 <= hues[1])
    near &= (saturation >= saturations[0]) & (saturation <= saturations[1])
    near &= (value >= values[0]) & (value <= values[1])
    shares[name] = float(near.mean())
  return shares
