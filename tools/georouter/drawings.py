"""Draws the images: flags of two artists, and maps of countries.

The knowledge base shows the 4:3 flags of flag-icons; a question shows the
round flag of circle-flags, another artist's drawing with a palette and a crop
of its own, so that finding one by the other takes more than equal pixels.
Outlines are drawn from Natural Earth's shapes, at 1:50 million for the
knowledge base; a question shows the coarser shape of 1:110 million, in other
colors.
"""

import io
import json
import math
import pathlib
from collections.abc import Iterator

import numpy as np
import PIL.ImageDraw
import resvg_py

SIZE = 64  # Pixels a side.

_GRAY = (128, 128, 128)

# Mean pixel differences, of 255, below which two flags are one, or look alike.
_SAME, _ALIKE = 2.0, 6.0

# Least share of the image and least number of points of an outline; smaller or
# plainer ones look like a blot.
_LEAST_INK, _LEAST_POINTS = 0.04, 12

# Islands farther away, in sizes of the mainland, are left out.
_REACH = 2.5

# Natural Earth's spelling, if it is not ours without "the".
_NATURAL_EARTH_NAMES = {
  "the United States": "United States of America",
  "DR Congo": "Dem. Rep. Congo",
  "Congo Republic": "Congo",
  "Burma": "Myanmar",
  "the Czech Republic": "Czechia",
  "the Central African Republic": "Central African Rep.",
  "Bosnia and Herzegovina": "Bosnia and Herz.",
  "the Dominican Republic": "Dominican Rep.",
  "the Solomon Islands": "Solomon Is.",
  "South Sudan": "S. Sudan",
  "Equatorial Guinea": "Eq. Guinea",
  "Swaziland": "eSwatini",
  "Vatican City": "Vatican",
  "the Falkland Islands": "Falkland Is.",
  "Cabo Verde": "Cabo Verde",
  "French Polynesia": "Fr. Polynesia",
  "the Faroe Islands": "Faeroe Is.",
  "the Marshall Islands": "Marshall Is.",
  "São Tomé and Príncipe": "São Tomé and Principe",
}


def draw_flag(path: pathlib.Path) -> PIL.Image.Image:
  """Draw a flag in the middle of a gray square."""
  png = resvg_py.svg_to_bytes(svg_string=path.read_text("utf-8"), width=SIZE)
  drawn = PIL.Image.open(io.BytesIO(bytes(png))).convert("RGBA")
  square = PIL.Image.new("RGB", (SIZE, SIZE), _GRAY)
  square.paste(
    drawn, ((SIZE - drawn.width) // 2, (SIZE - drawn.height) // 2), drawn
  )
  return square


def save_image(image: PIL.Image.Image, path: pathlib.Path) -> None:
  """Write a PNG of at most 64 colors, which flags do not exceed by much."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image.quantize(
    64, method=PIL.Image.Quantize.FASTOCTREE, dither=PIL.Image.Dither.NONE
  ).save(path, optimize=True)


def find_duplicates(images: dict[str, PIL.Image.Image]) -> set[str]:
  """Return the keys of images that repeat an earlier one of the dict."""
  return {
    key for key, gaps in _pixel_differences(images) if (gaps < _SAME).any()
  }


def find_look_alikes(images: dict[str, PIL.Image.Image]) -> set[str]:
  """Return the keys of images that the eye may take for another one."""
  backwards = dict(reversed(images.items()))
  return {
    key
    for way in (images, backwards)
    for key, gaps in _pixel_differences(way)
    if (gaps < _ALIKE).any()
  }


def _pixel_differences(
  images: dict[str, PIL.Image.Image],
) -> Iterator[tuple[str, np.ndarray]]:
  """Yield each key with the mean differences to the images before it."""
  pixels = [np.asarray(p, np.float32) for p in images.values()]
  for i, key in enumerate(images):
    yield key, np.array([np.abs(pixels[i] - p).mean() for p in pixels[:i]])


def draw_maps(
  path: pathlib.Path, names: list[str], *, ink: str, ground: str
) -> dict[str, PIL.Image.Image]:
  """Draw a map of each country whose shape can be recognized.

  Args:
    path: a TopoJSON file of the world's countries.
    names: our names of the countries.
    ink: color of the land.
    ground: color of the rest.

  Returns:
    The maps, by our names.
  """
  topology = json.loads(path.read_text("utf-8"))
  scale = np.array(topology["transform"]["scale"])
  shift = np.array(topology["transform"]["translate"])
  arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]
  shapes = {
    shape["properties"]["name"]: _outer_rings(shape, arcs)
    for shape in topology["objects"]["countries"]["geometries"]
    if shape.get("arcs")
  }
  found = {}
  for name in names:
    shape = shapes.get(
      _NATURAL_EARTH_NAMES.get(name, name.removeprefix("the "))
    )
    if shape and len(max(shape, key=_ring_area)) >= _LEAST_POINTS:
      drawn = _draw_outline(shape, ink, ground)
      bare = np.asarray(drawn)[0, 0]
      if (np.asarray(drawn) != bare).any(-1).mean() >= _LEAST_INK:
        found[name] = drawn
  return found


def _outer_rings(shape: dict, arcs: list[np.ndarray]) -> list[np.ndarray]:
  """Return the outer rings of a TopoJSON shape, in degrees."""
  # Index ~i stands for arc i in reverse.
  polygons = (
    shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]
  )
  rings = [
    np.concatenate([arcs[i] if i >= 0 else arcs[~i][::-1] for i in polygon[0]])
    for polygon in polygons
  ]
  # A step over the date line becomes a small step, and islands behind it move
  # to the side of the mainland.
  for ring in rings:
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
  middle = max(rings, key=_ring_area)[:, 0].mean()
  for ring in rings:
    ring[:, 0] -= 360 * np.round((ring[:, 0].mean() - middle) / 360)
  return rings


def _ring_area(ring: np.ndarray) -> float:
  x, y = ring.T
  return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _draw_outline(
  rings: list[np.ndarray], ink: str, ground: str
) -> PIL.Image.Image:
  """Draw the mainland and the islands near it, as large as the image allows."""
  main = max(rings, key=_ring_area)
  center = main.mean(axis=0)
  reach = _REACH * np.hypot(*np.ptp(main, axis=0))
  near = [
    ring
    for ring in rings
    if _ring_area(ring) > 0.01 * _ring_area(main)
    and np.hypot(*(ring.mean(axis=0) - center)) < reach
  ]
  # A degree of longitude is shorter far from the equator; y runs downwards.
  stretch = np.array([max(math.cos(math.radians(center[1])), 0.2), -1])
  near = [ring * stretch for ring in near]
  low = np.min([ring.min(axis=0) for ring in near], axis=0)
  high = np.max([ring.max(axis=0) for ring in near], axis=0)
  # Draw large and shrink, for smooth edges.
  big = 4 * SIZE
  zoom = (big - 24) / max(*(high - low), 1e-6)
  margin = (big - zoom * (high - low)) / 2
  image = PIL.Image.new("RGB", (big, big), ground)
  pen = PIL.ImageDraw.Draw(image)
  for ring in near:
    pen.polygon([tuple(xy) for xy in margin + (ring - low) * zoom], fill=ink)
  return image.resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
