r"""Trains the image encoder of the GeoRouter world.

  python -m tools.georouter.train_image_encoder --out=FOLDER

A question shows a flag as another artist drew it (round, with a palette of its
own), or a coarser map; the knowledge base holds other drawings of them.  Two
views x_i, y_i of the same thing attract each other, views of others repel:

  loss = mean_i - log softmax_j(x_i . y_j / t)_i, both ways,   t is learned

Only images of training countries are used.  They are few, so each step makes
new ones: both views of a thing are mirrored and have their color channels
swapped in the same way, which gives a flag of a country that does not exist.
Then each view by itself is moved, resized, and tinted, or a map is redrawn in
other colors or as a line.

Axes:  B images in a batch   S pixels of a side   N images of a kind and split
Source: arxiv.org/abs/1807.03748 (InfoNCE).
"""

import json
import os
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from jaxtyping import Array, Bool, Float, UInt8

from r1router_jax.common import cli, images
from r1router_jax.models import small_image_encoder
from r1router_jax.retrieval.corpora import sources

_OUT = flags.DEFINE_string(
  "out",
  None,
  "Folder that picture_encoder.safetensors and .json are written to.",
  allow_override=True,
)

_WORLD = flags.DEFINE_string(
  "world",
  "",
  "Folder of countries.jsonl and pictures/; the shipped world if empty.",
)

_STEPS = flags.DEFINE_integer(
  "steps", 600, "Number of updates.", allow_override=True
)

_SEED = flags.DEFINE_integer(
  "seed", 0, "Seed of weights, batches and views.", allow_override=True
)


# Folders of the images of a knowledge base and of questions, by kind.
KINDS = {"flags": ("kb", "query"), "maps": ("map", "query-map")}

BATCH_SIZES = {"flags": 96, "maps": 32}

PEAK_LEARNING_RATE = 2e-3

_SIZE = small_image_encoder.IMAGE_SIZE

# Centers of pixels along an axis, from -1 to 1.
_COORDINATES = (np.arange(_SIZE) - (_SIZE - 1) / 2) / (_SIZE / 2)

ImageArray = Float[Array, "S S 3"]


class Drawings(NamedTuple):
  """Images of one kind and split, each drawn twice.

  Attributes:
    indexed: drawings of the knowledge base.
    asked: drawings of the questions; if there is none, the indexed one again.
    shown: whether there is a drawing of the questions.
  """

  indexed: UInt8[np.ndarray, "N S S 3"]
  asked: UInt8[np.ndarray, "N S S 3"]
  shown: Bool[np.ndarray, " N"]


def read_drawings(world: str, split: str) -> dict[str, Drawings]:
  """Read the drawings of a split's countries, by kind."""
  with open(os.path.join(world, "countries.jsonl"), encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]

  def read_pixels(kind, code):
    path = os.path.join(world, "pictures", kind, f"{code}.png")
    if not os.path.exists(path):
      return None
    return images.stretch_to_square(images.load_image(path), _SIZE)

  drawings = {}
  for name, (indexed, asked) in KINDS.items():
    pairs = [
      (read_pixels(indexed, row["iso"]), read_pixels(asked, row["iso"]))
      for row in rows
      if row["split"] == split
    ]
    pairs = [(a, b) for a, b in pairs if a is not None]
    drawings[name] = Drawings(
      np.stack([a for a, _ in pairs]),
      np.stack([a if b is None else b for a, b in pairs]),
      np.array([b is not None for _, b in pairs]),
    )
  return drawings


def warp_image(
  key: Array, image: ImageArray, shift: float, zoom: float, turn: float
) -> ImageArray:
  """Move, resize and turn an image at random.

  Args:
    key: random key.
    image: the image.
    shift: largest distance, in halves of a side.
    zoom: largest logarithm of the factor, per axis.
    turn: largest angle in radians.
  """
  keys = jax.random.split(key, 4)
  dx, dy = jax.random.uniform(keys[0], (2,), minval=-shift, maxval=shift)
  angle = jax.random.uniform(keys[1], minval=-turn, maxval=turn)
  scale = jnp.exp(jax.random.uniform(keys[2], (2,), minval=-zoom, maxval=zoom))
  y, x = jnp.meshgrid(_COORDINATES, _COORDINATES, indexing="ij")
  u = (jnp.cos(angle) * x - jnp.sin(angle) * y) * scale[0] + dx
  v = (jnp.sin(angle) * x + jnp.cos(angle) * y) * scale[1] + dy
  where = [(c + 1) * _SIZE / 2 - 0.5 for c in (v, u)]
  sample = jax.scipy.ndimage.map_coordinates
  channels = [
    sample(image[..., c], where, order=1, mode="nearest") for c in range(3)
  ]
  return jnp.stack(channels, -1)


def tint_image(key: Array, image: ImageArray) -> ImageArray:
  """Apply a random gain and offset per channel, and a random gamma."""
  keys = jax.random.split(key, 3)
  gain = jax.random.uniform(keys[0], (3,), minval=0.75, maxval=1.15)
  offset = jax.random.uniform(keys[1], (3,), minval=-0.05, maxval=0.12)
  gamma = jnp.exp(jax.random.uniform(keys[2], minval=-0.3, maxval=0.3))
  return jnp.clip(image * gain + offset, 0, 1) ** gamma


def swap_channels(key: Array, *views: ImageArray) -> tuple[ImageArray, ...]:
  """Mirror all views, and permute their channels, in the same random way."""
  keys = jax.random.split(key, 3)
  order = jax.random.permutation(keys[0], 3)
  views = [view[..., order] for view in views]
  for axis, k in enumerate(keys[1:]):
    flip = jax.random.bernoulli(k)
    views = [jnp.where(flip, jnp.flip(view, axis), view) for view in views]
  return tuple(views)


def view_flags(
  key: Array, indexed: ImageArray, asked: ImageArray
) -> tuple[ImageArray, ImageArray]:
  """Make two random views of a flag."""
  keys = jax.random.split(key, 5)
  indexed, asked = swap_channels(keys[0], indexed, asked)
  return (
    warp_image(keys[1], tint_image(keys[2], indexed), 0.04, 0.06, 0.03),
    warp_image(keys[3], tint_image(keys[4], asked), 0.05, 0.10, 0.06),
  )


def view_maps(
  key: Array, indexed: ImageArray, asked: ImageArray
) -> tuple[ImageArray, ImageArray]:
  """Make two random views of a map."""
  keys = jax.random.split(key, 3)
  indexed, asked = swap_channels(keys[0], indexed, asked)
  return redraw_map(keys[1], indexed), redraw_map(keys[2], asked)


def redraw_map(key: Array, image: ImageArray) -> ImageArray:
  """Redraw the land of a map in random colors, filled or as a line; move it."""
  keys = jax.random.split(key, 5)
  # [S S 1], from 0 to 1; the first pixel of a map is never land.
  land = jnp.max(jnp.abs(image - image[0, 0]), axis=-1, keepdims=True)
  land /= jnp.maximum(jnp.max(land), 1e-3)

  def spread(x):
    return jax.lax.reduce_window(
      x, -jnp.inf, jax.lax.max, (3, 3, 1), (1, 1, 1), "SAME"
    )

  # Filled land, a line inside its border, a line on both sides, larger land.
  thick, thin = spread(land), -spread(-land)
  style = jax.random.choice(keys[0], 4, p=jnp.array([0.6, 0.15, 0.15, 0.1]))
  ink = jnp.stack([land, land - thin, thick - thin, thick])[style]
  paper, color = jax.random.uniform(keys[1], (2, 3))
  # A channel of the paint that is close to the paper's could not be seen.
  color = jnp.where(jnp.abs(color - paper) < 0.3, 1 - paper.round(), color)
  # Often keep the map as it was drawn, since the world's own maps matter most.
  drawn = jnp.where(
    jax.random.bernoulli(keys[2], 0.4), image, paper + ink * (color - paper)
  )
  return warp_image(keys[3], drawn, 0.08, 0.10, 0.08)


def loss(
  params: dict, x: Float[Array, "B S S 3"], y: Float[Array, "B S S 3"]
) -> Float[Array, ""]:
  """Compute the contrastive loss of the formula at the top of this module."""
  vectors = small_image_encoder.SmallImageEncoder().apply(
    {"params": params["encoder"]}, jnp.concatenate([x, y])
  )
  a, b = jnp.split(vectors, 2)
  logits = a @ b.T * jnp.exp(params["log_scale"])
  right = jnp.arange(len(x))
  return (
    optax.softmax_cross_entropy_with_integer_labels(logits, right).mean()
    + optax.softmax_cross_entropy_with_integer_labels(logits.T, right).mean()
  ) / 2


def train(drawings: dict[str, Drawings], steps: int, seed: int) -> dict:
  """Train an encoder on `drawings`, and return its parameters."""
  key = jax.random.key(seed)
  params = dict(
    encoder=small_image_encoder.init_params(key), log_scale=jnp.log(10.0)
  )
  optimizer = optax.adamw(
    optax.warmup_cosine_decay_schedule(
      0, PEAK_LEARNING_RATE, steps // 10, steps
    ),
    weight_decay=0.05,
  )
  pixels = {
    name: (jnp.asarray(d.indexed), jnp.asarray(d.asked))
    for name, d in drawings.items()
  }

  def draw_views(key, name, view):
    indexed, asked = pixels[name]
    count = min(BATCH_SIZES[name], len(indexed))
    row_key, *view_keys = jax.random.split(key, count + 1)
    rows = jax.random.choice(row_key, len(indexed), (count,), replace=False)
    return jax.vmap(view)(
      jnp.stack(view_keys), indexed[rows] / 255, asked[rows] / 255
    )

  @jax.jit
  def update(params, opt, key):
    keys = jax.random.split(key)
    pairs = (
      draw_views(keys[0], "flags", view_flags),
      draw_views(keys[1], "maps", view_maps),
    )
    value, grads = jax.value_and_grad(loss)(
      params, *map(jnp.concatenate, zip(*pairs, strict=True))
    )
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value

  opt = optimizer.init(params)
  for step in range(steps):
    params, opt, value = update(params, opt, jax.random.fold_in(key, step))
    if (step + 1) % 50 == 0:
      logging.info("step %d of %d: loss %.3f", step + 1, steps, value)
  return params["encoder"]


def measure_recall(
  params: dict, drawings: dict[str, dict[str, Drawings]], split: str
) -> dict[str, float | int]:
  """Measure how often the right image of the knowledge base is found.

  Args:
    params: the encoder's parameters.
    drawings: the drawings by split and kind; those of all splits are searched.
    split: the split whose questions are asked.

  Returns:
    By "<split>_<kind>", the number of questions, and their recall@1, 3 and 5.
  """

  def encode(pixels):
    return np.asarray(apply({"params": params}, jnp.asarray(pixels / 255)))

  apply = jax.jit(small_image_encoder.SmallImageEncoder().apply)
  # Encode the whole knowledge base, and keep where each part starts.
  vectors, start, row = [], {}, 0
  for part in drawings:
    for name, drawn in drawings[part].items():
      start[part, name] = row
      row += len(drawn.indexed)
      vectors.append(encode(drawn.indexed))
  entries = np.concatenate(vectors)
  # Rank the right entry of each question among all entries.
  figures = {}
  for name, drawn in drawings[split].items():
    gold = start[split, name] + np.flatnonzero(drawn.shown)
    scores = encode(drawn.asked[drawn.shown]) @ entries.T
    rank = (scores > scores[np.arange(len(gold)), gold][:, None]).sum(axis=1)
    figures[f"{split}_{name}"] = len(gold)
    for k in (1, 3, 5):
      figures[f"{split}_{name}_recall@{k}"] = round(float(np.mean(rank < k)), 3)
  return figures


def main(_) -> None:
  """Run the command."""
  world = _WORLD.value or sources.georouter_folder()
  start = time.time()
  drawings = {
    split: read_drawings(world, split) for split in ("train", "val", "test")
  }
  params = train(drawings["train"], _STEPS.value, _SEED.value)
  seconds = round(time.time() - start)
  os.makedirs(_OUT.value, exist_ok=True)
  path = os.path.join(_OUT.value, "picture_encoder.safetensors")
  small_image_encoder.save_params(path, params)
  # The file holds float16, so measure what a user will load.
  params = small_image_encoder.load_params(path)
  card = dict(
    command="python -m tools.georouter.train_image_encoder "
    f"--steps={_STEPS.value} --seed={_SEED.value} --out=FOLDER",
    seconds=seconds,
    jax=jax.__version__,
    parameters=sum(x.size for x in jax.tree.leaves(params)),
    **measure_recall(params, drawings, "val"),
    **measure_recall(params, drawings, "test"),
  )
  card_path = os.path.join(_OUT.value, "picture_encoder.json")
  with open(card_path, "w", encoding="utf-8") as file:
    json.dump(card, file, indent=2)
    file.write("\n")
  logging.info("Wrote %s: %s", path, card)


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  cli.run(main)
