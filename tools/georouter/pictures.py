"""Draws the pictures: flags in two hands, and outlines of countries.

The knowledge base shows the 4:3 flags of flag-icons; a question shows the
round flag of circle-flags, another artist's drawing with a palette and a crop
of its own, so that finding the one by the other takes more than equal pixels.
Outlines are drawn from Natural Earth's shapes, at 1:50 million for the
knowledge base; a question shows the coarser shape of 1:110 million, in other
colours.
"""

import io
import json
import math
import pathlib

import numpy as np
import PIL.ImageDraw
import resvg_py

SIZE = 64  # Pixels a side.

_GREY = (128, 128, 128)

# Drawings closer than these (mean difference, of 255) are one flag, or alike.
_SAME = 2.0

_ALIKE = 6.0

# A smaller or plainer outline is a blot: its share of the picture, its points.
_LEAST_INK, _LEAST_POINTS = 0.04, 12

_REACH = 2.5  # Islands farther off, in sizes of the mainland, are left out.

# Natural Earth's spelling, where it is not ours less "the".
_SHAPES = {
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

# Hue ranges (of 1), with least and greatest saturation and value.
_COLOURS = {
  "red": ((0.94, 1.04), (0.5, 1.0), (0.4, 1.0)),
  "green": ((0.22, 0.46), (0.35, 1.0), (0.2, 1.0)),
  "blue": ((0.50, 0.72), (0.4, 1.0), (0.25, 1.0)),
  "yellow": ((0.10, 0.18), (0.5, 1.0), (0.6, 1.0)),
  "white": ((0.0, 1.0), (0.0, 0.12), (0.85, 1.0)),
  "black": ((0.0, 1.0), (0.0, 1.0), (0.0, 0.25)),
}


def flag(path: pathlib.Path) -> PIL.Image.Image:
  """The flag in a square, grey where the flag is not."""
  png = resvg_py.svg_to_bytes(svg_string=path.read_text("utf-8"), width=SIZE)
  drawn = PIL.Image.open(io.BytesIO(bytes(png))).convert("RGBA")
  square = PIL.Image.new("RGB", (SIZE, SIZE), _GREY)
  square.paste(
    drawn, ((SIZE - drawn.width) // 2, (SIZE - drawn.height) // 2), drawn
  )
  return square


def save(picture: PIL.Image.Image, path: pathlib.Path):
  """Writes a PNG of at most 64 colours, which flags do not exceed by much."""
  path.parent.mkdir(parents=True, exist_ok=True)
  picture.quantize(
    64, method=PIL.Image.Quantize.FASTOCTREE, dither=PIL.Image.Dither.NONE
  ).save(path, optimize=True)


def doubles(pictures: dict[str, PIL.Image.Image]) -> set[str]:
  """Keys of pictures that repeat an earlier one, in the order of the dict."""
  return {key for key, gaps in _gaps(pictures) if (gaps < _SAME).any()}


def look_alikes(pictures: dict[str, PIL.Image.Image]) -> set[str]:
  """Keys of pictures that the eye may take for another one."""
  backwards = dict(reversed(pictures.items()))
  return {
    key
    for way in (pictures, backwards)
    for key, gaps in _gaps(way)
    if (gaps < _ALIKE).any()
  }


def _gaps(pictures: dict[str, PIL.Image.Image]):
  """Each key with the mean difference to the pictures before it."""
  pixels = [np.asarray(p, np.float32) for p in pictures.values()]
  for i, key in enumerate(pictures):
    yield key, np.array([np.abs(pixels[i] - p).mean() for p in pixels[:i]])


def colours(picture: PIL.Image.Image, part: str = "all") -> dict[str, float]:
  """Share of each named colour in a round flag, or in a third of it."""
  y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
  inside = np.hypot(x, y) < SIZE / 2 - 1
  inside &= {
    "all": True,
    "top": y < -SIZE / 3.2,
    "bottom": y > SIZE / 3.2,
    "left": x < -SIZE / 3.2,
    "right": x > SIZE / 3.2,
  }[part]
  hsv = np.asarray(picture.convert("HSV"), np.float32)[inside] / 255
  hue, saturation, value = hsv.T
  shares = {}
  for name, (hues, saturations, values) in _COLOURS.items():
    near = (hue >= hues[0]) & (hue <= hues[1])
    near |= (hue + 1 >= hues[0]) & (hue + 1 <= hues[1])
    near &= (saturation >= saturations[0]) & (saturation <= saturations[1])
    near &= (value >= values[0]) & (value <= values[1])
    shares[name] = float(near.mean())
  return shares


def outlines(
  path: pathlib.Path, names: list[str], *, ink: str, ground: str
) -> dict[str, PIL.Image.Image]:
  """A map of each country whose shape says something, by our name."""
  topology = json.loads(path.read_text("utf-8"))
  scale = np.array(topology["transform"]["scale"])
  shift = np.array(topology["transform"]["translate"])
  arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]
  shapes = {
    shape["properties"]["name"]: _rings(shape, arcs)
    for shape in topology["objects"]["countries"]["geometries"]
    if shape.get("arcs")
  }
  found = {}
  for name in names:
    shape = shapes.get(_SHAPES.get(name, name.removeprefix("the ")))
    if shape and len(max(shape, key=_area)) >= _LEAST_POINTS:
      drawn = _draw(shape, ink, ground)
      bare = np.asarray(drawn)[0, 0]
      if (np.asarray(drawn) != bare).any(-1).mean() >= _LEAST_INK:
        found[name] = drawn
  return found


def _rings(shape: dict, arcs: list[np.ndarray]) -> list[np.ndarray]:
  """The outer rings; index ~i stands for arc i walked backwards."""
  polygons = (
    shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]
  )
  rings = [
    np.concatenate([arcs[i] if i >= 0 else arcs[~i][::-1] for i in polygon[0]])
    for polygon in polygons
  ]
  for ring in rings:  # A step over the date line is a small step.
    ring[:, 0] = np.unwrap(ring[:, 0], period=360)
  middle = max(rings, key=_area)[:, 0].mean()
  for ring in rings:
    ring[:, 0] -= 360 * np.round((ring[:, 0].mean() - middle) / 360)
  return rings


def _area(ring: np.ndarray) -> float:
  x, y = ring.T
  return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _draw(rings: list[np.ndarray], ink: str, ground: str) -> PIL.Image.Image:
  """The mainland and the islands near it, as wide as the picture allows."""
  main = max(rings, key=_area)
  centre = main.mean(axis=0)
  reach = _REACH * np.hypot(*np.ptp(main, axis=0))
  near = [
    ring
    for ring in rings
    if _area(ring) > 0.01 * _area(main)
    and np.hypot(*(ring.mean(axis=0) - centre)) < reach
  ]
  stretch = np.array([max(math.cos(math.radians(centre[1])), 0.2), -1])
  near = [ring * stretch for ring in near]
  low = np.min([ring.min(axis=0) for ring in near], axis=0)
  high = np.max([ring.max(axis=0) for ring in near], axis=0)
  big = 4 * SIZE  # Drawn large and shrunk, for smooth edges.
  zoom = (big - 24) / max(*(high - low), 1e-6)
  margin = (big - zoom * (high - low)) / 2
  picture = PIL.Image.new("RGB", (big, big), ground)
  pen = PIL.ImageDraw.Draw(picture)
  for ring in near:
    pen.polygon([tuple(xy) for xy in margin + (ring - low) * zoom], fill=ink)
  return picture.resize((SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
