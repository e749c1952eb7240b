"""Draw the badges, crests and flags of invented things.

A picture shows all visual attributes of its half of the grammar, those that
captions tell and the others, whose values depend on the thing's name alone.
Each thing has two drawings: that of the image knowledge base, and another that
questions show, in other shades, of another size and a little turned.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from r1router_jax.data.domains.domain import Thing, pick
from r1router_jax.data.domains.lexicon import Visual

SIDE = 128  # Pixels of a picture.

_CANVAS = 256  # Pixels before it is shrunk, so that edges are smooth.
_FILE_COLORS = 48  # Few, so that files are small.
_PAPER = (236, 234, 228)
_DARK, _LIGHT = (35, 35, 40), (245, 245, 240)

Color = tuple[int, ...]
Polygon = Float[np.ndarray, "points 2"]  # In [-1, 1], x to the right, y down.
Grid = Float[np.ndarray, "height width 2"]
Mask = Bool[np.ndarray, "height width"]


# --- Figures ------------------------------------------------------------------


def _arc(radius: float, start: float = 0.0, end: float = 1.0) -> Polygon:
  """Return points of a circle, from one part of a turn to another."""
  angles = 2 * np.pi * np.linspace(start, end, 60)
  return radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def _regular(corners: int, inner: float = 1.0) -> Polygon:
  """Return a polygon with a corner on top; `inner` makes a star of it."""
  radii = np.where(np.arange(corners) % 2, inner, 1.0)
  angles = 2 * np.pi * (np.arange(corners) / corners - 0.25)
  return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _heart() -> Polygon:
  t = 2 * np.pi * np.linspace(0, 1, 60)
  y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
  return np.stack([16 * np.sin(t) ** 3, -y], 1) / 17


def _drop() -> Polygon:
  t = 2 * np.pi * np.linspace(0, 1, 60)
  return np.stack([0.8 * np.sin(t) * np.sin(t / 2) ** 2, -np.cos(t)], 1)


def _wave() -> Polygon:
  # Wider at its right end, so that half a turn is seen.
  x = np.linspace(-1, 1, 60)
  middle, half = 0.4 * np.sin(2 * np.pi * x), 0.22 + 0.18 * x
  edges = [np.stack([x, middle + side * half], 1) for side in (-1, 1)]
  return np.concatenate([edges[0], edges[1][::-1]])


def _parse(points: str) -> Polygon:
  return np.array([list(map(float, p.split(","))) for p in points.split()])


FIGURES: dict[str, Polygon] = {
  "circle": _arc(0.95),
  "square": _parse("-.85,-.85 .85,-.85 .85,.85 -.85,.85"),
  "triangle": _regular(3),
  "star": _regular(10, 0.42),
  "cross": _parse(
    "-.3,-1 .3,-1 .3,-.3 1,-.3 1,.3 .3,.3 "
    ".3,1 -.3,1 -.3,.3 -1,.3 -1,-.3 -.3,-.3"
  ),
  "diamond": _regular(4) * [0.7, 1],
  # The outline goes back along the hole.
  "ring": np.concatenate([_arc(0.95), _arc(0.55, 1.0, 0.0)]),
  "heart": _heart(),
  "crescent": np.concatenate(
    [_arc(0.95, 0.12, 0.88), _arc(0.72, 0.85, 0.15) + [0.28, 0]]
  ),
  "arrow": _parse("0,-1 .7,-.2 .25,-.2 .25,1 -.25,1 -.25,-.2 -.7,-.2"),
  "hexagon": _regular(6),
  "drop": _drop(),
  "lozenge chain": _parse(
    "-1,0 -.67,-.5 -.33,0 0,-.5 .33,0 .67,-.5 "
    "1,0 .67,.5 .33,0 0,.5 -.33,0 -.67,.5"
  ),
  "wave": _wave(),
  "tower": _parse(
    "-.6,1 .6,1 .6,-.4 .8,-.4 .8,-1 .4,-1 .4,-.7 .2,-.7 .2,-1 "
    "-.2,-1 -.2,-.7 -.4,-.7 -.4,-1 -.8,-1 -.8,-.4 -.6,-.4"
  ),
}


# --- Patterns behind the figures ----------------------------------------------


def _bands(x: float, y: float) -> Callable[[Grid], Mask]:
  return lambda grid: np.sin(np.pi * (grid @ np.array([x, y]))) > 0.3


def _scales(grid: Grid) -> Mask:
  # Rows of arcs, each shifted by half an arc.
  row, y = np.divmod(grid[..., 1], 1)
  x = (grid[..., 0] + row) % 2 - 1
  return np.abs(np.hypot(x, y) - 0.85) < 0.15


def _zigzags(grid: Grid) -> Mask:
  return (grid[..., 1] + np.abs(grid[..., 0] % 2 - 1)) % 2 < 0.7


# Which points of a picture have a pattern's colour; a unit is half a period.
PATTERNS: dict[str, Callable[[Grid], Mask]] = {
  "upright": _bands(1.0, 0.0),
  "level": _bands(0.0, 1.0),
  "slanting": _bands(0.7, 0.7),
  "crossing": lambda grid: _bands(0.7, 0.7)(grid) | _bands(0.7, -0.7)(grid),
  "chequers": lambda grid: np.floor(grid).sum(-1) % 2 > 0,
  "spots": lambda grid: np.linalg.norm(grid % 2 - 1, axis=-1) < 0.55,
  "zigzags": _zigzags,
  "grids": lambda grid: (np.abs(grid % 2 - 1) < 0.15).any(-1),
  "scales": _scales,
}


# --- Other values of attributes -----------------------------------------------

COLORS: dict[str, Color] = dict(
  red=(205, 35, 40),
  blue=(35, 75, 190),
  green=(25, 140, 65),
  yellow=(245, 215, 45),
  white=(250, 250, 250),
  black=(25, 25, 25),
  orange=(240, 130, 25),
  purple=(120, 45, 150),
  brown=(115, 70, 35),
  grey=(140, 145, 150),
  gold=(212, 165, 30),
  silver=(195, 200, 210),
  pink=(250, 150, 190),
  turquoise=(50, 200, 200),
  maroon=(115, 15, 45),
  lime=(165, 230, 40),
  navy=(20, 25, 95),
  cream=(250, 240, 205),
  crimson=(180, 15, 55),
  teal=(0, 120, 125),
  olive=(120, 125, 40),
  lavender=(190, 170, 235),
  beige=(225, 205, 170),
  charcoal=(60, 65, 70),
  coral=(250, 125, 95),
)
COUNTS = {
  "once": 1,
  "twice": 2,
  "three times": 3,
  "four times": 4,
  "five times": 5,
  "six times": 6,
}
# Width of each line, and length of dashes in widths, 0 for none.
BORDERS = dict(
  thin=((6,), 0),
  broad=((22,), 0),
  double=((6, 6), 0),
  dotted=((11,), 1),
  dashed=((11,), 3),
)
CORNERS = {
  "top left": (0, 0),
  "top right": (1, 0),
  "bottom left": (0, 1),
  "bottom right": (1, 1),
}
TURNS = {
  "no turn": 0.0,
  "an eighth turn": 45.0,
  "a quarter turn": 90.0,
  "half a turn": 180.0,
}

# The part of a picture that an attribute tells, and what draws its values.
PARTS: dict[str, tuple[str, Mapping[str, Any]]] = dict(
  ground=("ground", COLORS),
  field=("ground", COLORS),
  stripes=("pattern", PATTERNS),
  pattern=("pattern", PATTERNS),
  shape=("figure", FIGURES),
  charge=("figure", FIGURES),
  shape_colour=("figure_color", COLORS),
  count=("count", COUNTS),
  tilt=("turn", TURNS),
  border=("border", BORDERS),
  corner=("corner", CORNERS),
)


@dataclasses.dataclass(frozen=True)
class Look:
  """What a picture shows; the first values are those that names decide."""

  period: float  # Half of the pattern's, in pixels.
  contrast: int  # Of the pattern's colour and the ground's, in levels.
  ground: Color
  pattern: Callable[[Grid], Mask]
  figure: Polygon
  figure_color: Color
  count: int = 1
  turn: float = 0.0
  border: tuple[tuple[int, ...], int] = ((), 0)
  corner: tuple[int, int] | None = None


# --- Pictures -----------------------------------------------------------------


def draw_picture(
  visuals: Sequence[Visual], thing: Thing, variant: int
) -> Image.Image:
  """Return a drawing of a thing, always the same one.

  Args:
    visuals: all visual attributes of the thing's half of the grammar.
    thing: the thing.
    variant: 0 for the drawing of the knowledge base, 1 for the other one.
  """
  look = _choose_look(visuals, thing)
  # A name's bytes are a seed that does not change between processes.
  rng = _seeded_rng(f"{thing.name}, drawing {variant}")
  if variant:
    shades = rng.integers(-14, 15, (2, 3)).tolist()
    look = dataclasses.replace(
      look,
      period=look.period * rng.uniform(0.85, 1.2),
      ground=_shift(look.ground, shades[0]),
      figure_color=_shift(look.figure_color, shades[1]),
    )
  image = _paint(look, rng.uniform(0.85, 1.1) if variant else 1.0)
  if variant:
    image = _photograph(image, rng)
  image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
  return image.quantize(_FILE_COLORS)


def _seeded_rng(text: str) -> np.random.Generator:
  seed = hashlib.sha256(text.encode()).digest()[:8]
  return np.random.default_rng(int.from_bytes(seed, "little"))


def _choose_look(visuals: Sequence[Visual], thing: Thing) -> Look:
  """Return what a thing looks like: its facts, and for the rest its name."""
  rng = _seeded_rng(thing.name)
  chosen = dict(
    period=rng.uniform(16, 30),
    contrast=pick(rng, (-60, -40, 40)),
    figure_color=COLORS[pick(rng, ("white", "gold", "black", "silver"))],
  )
  for visual in visuals:
    part, values = PARTS[visual.name]
    # Drawn in any case, so that one fact does not change other parts.
    value = pick(rng, visual.values)
    if visual.name in thing.facts:
      value = thing.facts[visual.name].text
    chosen[part] = values[value]
  return Look(**chosen)


def _paint(look: Look, scale: float) -> Image.Image:
  # 1. Ground and pattern.
  grid = np.stack(np.meshgrid(*[np.arange(_CANVAS)] * 2), -1) / look.period
  # A very dark ground takes a lighter pattern, and a very light one a darker.
  level, contrast = np.mean(look.ground), look.contrast
  if not 60 < level < 200:
    contrast = abs(contrast) if level <= 60 else -abs(contrast)
  colors = np.array([look.ground, _shift(look.ground, [contrast] * 3)])
  pixels = colors[look.pattern(grid).astype(int)]
  image = Image.fromarray(pixels.astype(np.uint8))
  draw = ImageDraw.Draw(image)

  # 2. Border and mark in a corner.
  edge = _LIGHT if level < 110 else _DARK
  _draw_border(draw, *look.border, edge)
  if look.corner is not None:
    x, y = (20 + 178 * side for side in look.corner)
    draw.ellipse([x, y, x + 38, y + 38], edge)

  # 3. Figures in rows of up to three.
  rows = [look.count] if look.count < 4 else [look.count // 2] * 2
  if look.count == 5:
    rows = [3, 2]
  radius = scale * {1: 75, 2: 47}.get(look.count, 33)
  angle = np.deg2rad(look.turn)
  turn = np.array(
    [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
  )
  for i, columns in enumerate(rows):
    y = _CANVAS / 2 + 2.4 * radius * (i - (len(rows) - 1) / 2)
    for j in range(columns):
      x = _CANVAS / 2 + 2.3 * radius * (j - (columns - 1) / 2)
      points = look.figure @ turn * radius + [x, y]
      outline = _DARK if np.mean(look.figure_color) > 100 else _LIGHT
      corners = [tuple(point) for point in points.tolist()]
      draw.polygon(corners, look.figure_color, outline, width=3)
  return image


def _draw_border(
  draw: ImageDraw.ImageDraw, widths: Sequence[int], dash: int, color: Color
) -> None:
  inset = 7
  for width in widths:
    far = _CANVAS - inset
    if not dash:
      draw.rectangle([inset, inset, far, far], outline=color, width=width)
    length = dash * width
    # Dashes are as long as the gaps between them.
    for start in range(inset, far, 2 * length) if dash else ():
      end = min(start + length, far)
      for side in (inset, far - width):
        draw.rectangle([start, side, end, side + width], color)
        draw.rectangle([side, start, side + width, end], color)
    inset += 2 * width + 3


def _photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Return an image of a picture that lies a little askew on paper."""
  side = round(_CANVAS * rng.uniform(0.88, 0.97))
  image = image.resize((side, side)).convert("RGBA")
  angle = float(rng.uniform(-5, 5))
  image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
  paper = Image.new("RGBA", (_CANVAS, _CANVAS), (*_PAPER, 255))
  # A picture that is larger than the paper is cropped.
  left, top = (
    (_CANVAS - x) // 2 + int(rng.integers(-4, 5)) for x in image.size
  )
  paper.paste(image, (left, top), image)
  return paper.convert("RGB")


def _shift(color: Color, levels: Sequence[int]) -> Color:
  return tuple(np.clip(np.add(color, levels), 0, 255).tolist())
