r"""Draws the pictures of the second world, each by two hands.

  python benchmarks/second_world/draw_pictures.py \
      --folder=benchmarks/second_world

drawings.txt says what is on them.  `documents/pictures/` are those of the
knowledge base.  `question_pictures/` show the same things as a visitor's
photograph would: in another size, a little turned, cropped and faded, so that
the pixels differ.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw

# Colours that drawings name and Pillow knows by another value, or not at all.
COLOURS = dict(
  cream="#f4ecd2",
  gold="#d9a520",
  gray="#77808a",
  green="#2f7d3b",
  palegray="#c9ccd6",
  paleblue="#bcd8ea",
  purple="#5b2c6f",
  silver="#c6cbd0",
  violet="#7a5bb0",
  yellow="#f2cf3a",
)
# What strokes stand on: colour ("" for the ground's) and corners of each shape.
_CLOTH = (("", (0, 0, 100, 0, 100, 100, 0, 100)),)
FRAMES: dict[str, tuple[tuple[str, tuple[float, ...]], ...]] = dict(
  board=(
    ("black", (8, 4, 92, 4, 92, 8, 8, 8)),
    ("black", (26, 8, 28, 8, 28, 20, 26, 20)),
    ("black", (72, 8, 74, 8, 74, 20, 72, 20)),
    ("brown", (8, 18, 92, 18, 92, 92, 8, 92)),
    ("", (12, 22, 88, 22, 88, 88, 12, 88)),
  ),
  cloth=_CLOTH,
  shield=(
    ("black", (4, 4, 96, 4, 96, 60, 50, 99, 4, 60)),
    ("", (7, 7, 93, 7, 93, 59, 50, 95, 7, 59)),
  ),
  sky=_CLOTH,
)
FIELD = 100  # Units of length on a side of the drawings' field.
FINE = 4  # Pixels drawn for each pixel shown, on a side.


class Drawing(NamedTuple):
  """One picture: its frame, the ground's colour, and what is on it."""

  frame: str  # A key of `FRAMES`.
  ground: str
  strokes: tuple[tuple[str, ...], ...]


class Hand(NamedTuple):
  """How a picture is drawn: the hand that draws it, and the light."""

  pixels: int  # On a side.
  turn: float  # Degrees.
  zoom: float
  light: float  # Factor of all colours.
  warmth: float  # Taken from blue, added to red; of 255.
  wall: str  # What is around it.


FIRST = Hand(224, turn=0, zoom=1, light=1, warmth=0, wall="white")
SECOND = Hand(180, turn=4, zoom=1.12, light=0.9, warmth=9, wall="#d8cdb8")


def read_drawings(path: pathlib.Path) -> dict[str, Drawing]:
  """Return the drawings of a file by their names.

  Raises a ValueError if a frame is unknown.
  """
  drawings = {}
  for number, line in enumerate(path.read_text().splitlines(), 1):
    kind, *words = line.split() or ["#"]
    if kind == "picture":
      name, frame, ground = words
      if frame not in FRAMES:
        fault = f"{path}:{number}: {name} has the frame {frame}"
        raise ValueError(f"{fault}; take one of {', '.join(FRAMES)}.")
      drawings[name] = Drawing(frame, ground, ())
    elif kind != "#":
      last = drawings[name]
      drawings[name] = last._replace(strokes=(*last.strokes, (kind, *words)))
  return drawings


def draw_picture(drawing: Drawing, hand: Hand) -> PIL.Image.Image:
  """Return the picture of a drawing, as a hand draws it."""
  side = hand.pixels * FINE
  image = PIL.Image.new("RGB", (side, side), hand.wall)
  pen = PIL.ImageDraw.Draw(image)
  for colour, corners in FRAMES[drawing.frame]:
    filling = find_colour(colour or drawing.ground)
    draw_stroke(pen, "shape", filling, corners, side)
  for kind, colour, *words in drawing.strokes:
    draw_stroke(pen, kind, find_colour(colour), [*map(float, words)], side)
  # The turn and the zoom leave the corners to the wall.
  image = image.rotate(
    hand.turn, PIL.Image.Resampling.BICUBIC, fillcolor=hand.wall
  )
  cut = round(side * (1 - 1 / hand.zoom) / 2)
  image = image.crop((cut, cut, side - cut, side - cut))
  image = image.resize((hand.pixels, hand.pixels), PIL.Image.Resampling.LANCZOS)
  light = np.asarray(image) * hand.light + [hand.warmth, 0, -hand.warmth]
  return PIL.Image.fromarray(np.clip(light, 0, 255).astype(np.uint8))


def draw_stroke(
  pen: PIL.ImageDraw.ImageDraw,
  kind: str,
  colour: tuple[int, ...],
  numbers: Sequence[float],
  side: int,
) -> None:
  """Draw one stroke; its numbers are in units of the field, or degrees."""
  scaled = [number * side / FIELD for number in numbers]
  if kind == "oval":
    pen.ellipse(scaled, colour)
  elif kind == "shape":
    pen.polygon(scaled, colour)
  elif kind == "line":
    pen.line(scaled[1:], colour, round(scaled[0]), joint="curve")
  elif kind == "ring":
    pen.arc(scaled[1:5], *numbers[5:], colour, round(scaled[0]))
  else:
    raise ValueError(f"{kind} is no stroke; see drawings.txt.")


def find_colour(name: str) -> tuple[int, ...]:
  """Return the red, green and blue of a colour's name."""
  return PIL.ImageColor.getrgb(COLOURS.get(name, name))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--folder", required=True, type=pathlib.Path)
  folder = parser.parse_args().folder
  drawings = read_drawings(pathlib.Path(__file__).with_name("drawings.txt"))
  for place, hand in (
    ("documents/pictures", FIRST),
    ("question_pictures", SECOND),
  ):
    (folder / place).mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings.items():
      path = folder / place / f"{name}.png"
      draw_picture(drawing, hand).save(path, optimize=True)


if __name__ == "__main__":
  main()
