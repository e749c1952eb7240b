"""Pictures of invented things: drawable, distinct, and drawn twice."""

import io

import numpy as np
import pytest
from PIL import Image

from r1router_jax.data.domains import drawing
from r1router_jax.data.domains.domain import Fact, Thing
from r1router_jax.data.domains.lexicon import HALVES, load_lexicon


def make_thing(half, name="the Orvane Light", **values):
  facts = {key: Fact(value) for key, value in values.items()}
  return Thing(name, load_lexicon(half).kinds[0], facts)


def draw(half, thing, variant=0):
  image = drawing.draw_picture(load_lexicon(half).visuals, thing, variant)
  assert image.size == (drawing.SIDE, drawing.SIDE)
  return np.asarray(image.convert("RGB")).astype(float)


@pytest.mark.parametrize("half", HALVES)
def test_each_value_of_an_attribute_is_seen(half):
  for visual in load_lexicon(half).visuals:
    pictures = [
      draw(half, make_thing(half, **{visual.name: value}))
      for value in visual.values
    ]
    for i, one in enumerate(pictures):
      for value, other in list(zip(visual.values, pictures, strict=True))[:i]:
        # Another value changes some pixels much.
        assert np.abs(one - other).max() > 40, (visual.name, value)


def test_ground_has_the_colour_that_is_told():
  for value in ("red", "green", "blue"):
    picture = draw("train", make_thing("train", ground=value))
    # Beside the border and the figures.
    means = picture[24:104, 24:104].mean((0, 1))
    assert np.argmax(means) == ("red", "green", "blue").index(value)


def test_figures_are_as_many_as_told():
  areas = []
  for value in ("once", "twice", "three times"):
    thing = make_thing(
      "train", ground="black", shape="square", shape_colour="lime", count=value
    )
    picture = draw("train", thing)
    lime = np.abs(picture - drawing.COLORS["lime"]).max(-1) < 40
    # Runs of lime pixels along the middle row.
    row = lime[drawing.SIDE // 2].astype(int)
    areas.append(int((np.diff(row, prepend=0) == 1).sum()))
  assert areas == [1, 2, 3]


@pytest.mark.parametrize("corner", ["top left", "bottom right"])
def test_mark_is_in_its_corner(corner):
  others = [x for x in drawing.CORNERS if x != corner]
  marked = draw("test", make_thing("test", corner=corner))
  plain = draw("test", make_thing("test", corner=others[0]))
  half = drawing.SIDE // 2
  changed = np.abs(marked - plain).max(-1) > 40
  rows = slice(0, half) if "top" in corner else slice(half, None)
  columns = slice(0, half) if "left" in corner else slice(half, None)
  assert changed[rows, columns].sum() > 50


@pytest.mark.parametrize("half", HALVES)
def test_things_of_equal_attributes_look_different(half):
  visuals = load_lexicon(half).visuals[:3]
  values = {visual.name: visual.values[0] for visual in visuals}
  one, other = (
    draw(half, make_thing(half, name, **values)) for name in ("Ama", "Bro")
  )
  assert np.abs(one - other).max() > 40


def layout(picture):
  """Return the mean colours of a grid of 8 x 8 cells."""
  return picture.reshape(8, 16, 8, 16, 3).mean((1, 3)).ravel()


@pytest.mark.parametrize("half", HALVES)
def test_second_drawing_is_nearest_to_the_first_of_its_thing(half):
  things = [make_thing(half, f"Thing {n}") for n in range(24)]
  first, second = (
    np.stack([layout(draw(half, thing, variant)) for thing in things])
    for variant in (0, 1)
  )
  distances = np.linalg.norm(second[:, None] - first[None], axis=-1)
  own = np.diag(distances)
  # It is another picture, yet nearer than those of most other things.
  assert own.min() > 0
  assert (distances < own[:, None]).sum(1).mean() < 3


def test_pictures_are_the_same_each_time_and_small():
  data = []
  for _ in range(2):
    file = io.BytesIO()
    visuals = load_lexicon("train").visuals
    image = drawing.draw_picture(visuals, make_thing("train"), 1)
    image.save(file, "PNG")
    data.append(file.getvalue())
  assert data[0] == data[1] and len(data[0]) < 16_000
  assert Image.open(io.BytesIO(data[0])).format == "PNG"
