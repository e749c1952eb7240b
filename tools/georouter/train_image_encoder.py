r"""Trains the picture encoder of the embedded world.

  python -m tools.georouter.train_image_encoder --out=FOLDER

A question shows a flag as another artist drew it (round, with a palette of its
own), or a coarser map; the knowledge base holds other drawings of them.  Two
views x_i, y_i of the same thing attract each other, views of others repel:

  loss = mean_i - log softmax_j(x_i . y_j / t)_i, both ways,   t is learned

Only pictures of training countries are used.  They are few, so each step makes
new ones of them: both views are mirrored and have their colours exchanged in
the same way, which gives a flag of a country that does not exist.  Then each
view alone is moved, resized, and tinted, or a map redrawn in other colours or
as a line.

Axes:  B pictures in a batch   S pixels a side
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
  "Folder for picture_encoder.safetensors and its .json.",
  allow_override=True,
)

_WORLD = flags.DEFINE_string(
  "world",
  "",
  "Folder of countries.jsonl and pictures/; the embedded world if empty.",
)

_STEPS = flags.DEFINE_integer("steps", 600, "Updates.", allow_override=True)

_SEED = flags.DEFINE_integer(
  "seed", 0, "Of weights, batches and views.", allow_override=True
)


KINDS = {"flags": ("kb", "query"), "maps": ("map", "query-map")}  # Folders.

IN_BATCH = {"flags": 96, "maps": 32}

RATE = 2e-3  # Peak learning rate of AdamW.

_COORDINATES = (
  np.arange(small_image_encoder.SIDE) - (small_image_encoder.SIDE - 1) / 2
) / (small_image_encoder.SIDE / 2)  # From -1 to 1.


Picture = Float[Array, "S S 3"]


class Drawings(NamedTuple):
  """Pictures of one kind and split, drawn twice.

  Attributes:
    indexed: as the knowledge base has them.
    asked: as questions show them; the indexed ones again where none do.
    shown: whether questions do.
  """

  indexed: UInt8[np.ndarray, "N S S 3"]
  asked: UInt8[np.ndarray, "N S S 3"]
  shown: Bool[np.ndarray, " N"]


def read(world: str, split: str) -> dict[str, Drawings]:
  """The "flags" and "maps" of a split's countries."""
  with open(os.path.join(world, "countries.jsonl"), encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]

  def pixels(kind, code):
    path = os.path.join(world, "pictures", kind, f"{code}.png")
    return (
      images.square(images.load(path), small_image_encoder.SIDE)
      if os.path.exists(path)
      else None
    )

  drawings = {}
  for name, (indexed, asked) in KINDS.items():
    pairs = [
      (pixels(indexed, row["iso"]), pixels(asked, row["iso"]))
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


def warp(
  key: Array, image: Picture, shift: float, zoom: float, turn: float
) -> Picture:
  """Moves, resizes and turns by at most so much (of half a side, radians)."""
  keys = jax.random.split(key, 4)
  dx, dy = jax.random.uniform(keys[0], (2,), minval=-shift, maxval=shift)
  angle = jax.random.uniform(keys[1], minval=-turn, maxval=turn)
  scale = jnp.exp(jax.random.uniform(keys[2], (2,), minval=-zoom, maxval=zoom))
  y, x = jnp.meshgrid(_COORDINATES, _COORDINATES, indexing="ij")
  u = (jnp.cos(angle) * x - jnp.sin(angle) * y) * scale[0] + dx
  v = (jnp.sin(angle) * x + jnp.cos(angle) * y) * scale[1] + dy
  where = [(c + 1) * small_image_encoder.SIDE / 2 - 0.5 for c in (v, u)]
  return jnp.stack(
    [
      jax.scipy.ndimage.map_coordinates(
        image[..., c], where, order=1, mode="nearest"
      )
      for c in range(3)
    ],
    -1,
  )


def tint(key: Array, image: Picture) -> Picture:
  """Other paints: a gain and an offset per channel, and another gamma."""
  keys = jax.random.split(key, 3)
  gain = jax.random.uniform(keys[0], (3,), minval=0.75, maxval=1.15)
  offset = jax.random.uniform(keys[1], (3,), minval=-0.05, maxval=0.12)
  gamma = jnp.exp(jax.random.uniform(keys[2], minval=-0.3, maxval=0.3))
  return jnp.clip(image * gain + offset, 0, 1) ** gamma


def exchange(key: Array, *views: Picture) -> tuple[Picture, ...]:
  """The same mirroring and the same swap of channels for all views."""
  keys = jax.random.split(key, 3)
  order = jax.random.permutation(keys[0], 3)
  views = [view[..., order] for view in views]
  for axis, k in enumerate(keys[1:]):
    flip = jax.random.bernoulli(k)
    views = [jnp.where(flip, jnp.flip(view, axis), view) for view in views]
  return tuple(views)


def view_flags(
  key: Array, indexed: Picture, asked: Picture
) -> tuple[Picture, Picture]:
  """Two views of a flag."""
  keys = jax.random.split(key, 5)
  indexed, asked = exchange(keys[0], indexed, asked)
  return (
    warp(keys[1], tint(keys[2], indexed), 0.04, 0.06, 0.03),
    warp(keys[3], tint(keys[4], asked), 0.05, 0.10, 0.06),
  )


def view_maps(
  key: Array, indexed: Picture, asked: Picture
) -> tuple[Picture, Picture]:
  """Two views of a map."""
  keys = jax.random.split(key, 3)
  indexed, asked = exchange(keys[0], indexed, asked)
  return redraw(keys[1], indexed), redraw(keys[2], asked)


def redraw(key: Array, image: Picture) -> Picture:
  """The land of a map in other colours, filled or as a line, and moved."""
  keys = jax.random.split(key, 5)
  land = jnp.max(jnp.abs(image - image[0, 0]), axis=-1, keepdims=True)
  land /= jnp.maximum(jnp.max(land), 1e-3)
  spread = lambda x: jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (3, 3, 1), (1, 1, 1), "SAME"
  )
  thick, thin = spread(land), -spread(-land)
  style = jax.random.choice(keys[0], 4, p=jnp.array([0.6, 0.15, 0.15, 0.1]))
  ink = jnp.stack([land, land - thin, thick - thin, thick])[style]
  paper, colour = jax.random.uniform(keys[1], (2, 3))
  # Paint that differs from the paper in some channel, and so can be seen.
  colour = jnp.where(jnp.abs(colour - paper) < 0.3, 1 - paper.round(), colour)
  # Often as it was drawn, so that the house's own maps are told apart best.
  drawn = jnp.where(
    jax.random.bernoulli(keys[2], 0.4), image, paper + ink * (colour - paper)
  )
  return warp(keys[3], drawn, 0.08, 0.10, 0.08)


def loss(
  params: dict, x: Float[Array, "B S S 3"], y: Float[Array, "B S S 3"]
) -> Float[Array, ""]:
  """The formula above."""
  vectors = small_image_encoder.PictureEncoder().apply(
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
  """Parameters of an encoder trained on `drawings`."""
  key = jax.random.key(seed)
  params = dict(encoder=small_image_encoder.init(key), log_scale=jnp.log(10.0))
  tx = optax.adamw(
    optax.warmup_cosine_decay_schedule(0, RATE, steps // 10, steps),
    weight_decay=0.05,
  )
  pixels = {
    name: (jnp.asarray(d.indexed), jnp.asarray(d.asked))
    for name, d in drawings.items()
  }

  def draw(key, name, view):
    indexed, asked = pixels[name]
    count = min(IN_BATCH[name], len(indexed))
    row_key, *view_keys = jax.random.split(key, count + 1)
    rows = jax.random.choice(row_key, len(indexed), (count,), replace=False)
    return jax.vmap(view)(
      jnp.stack(view_keys), indexed[rows] / 255, asked[rows] / 255
    )

  @jax.jit
  def update(params, opt, key):
    keys = jax.random.split(key)
    pairs = (
      draw(keys[0], "flags", view_flags),
      draw(keys[1], "maps", view_maps),
    )
    value, grads = jax.value_and_grad(loss)(
      params, *map(jnp.concatenate, zip(*pairs, strict=True))
    )
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value

  opt = tx.init(params)
  for step in range(steps):
    params, opt, value = update(params, opt, jax.random.fold_in(key, step))
    if (step + 1) % 50 == 0:
      logging.info("step %d of %d: loss %.3f", step + 1, steps, value)
  return params["encoder"]


def recall(
  params: dict, drawings: dict[str, dict[str, Drawings]], split: str
) -> dict[str, float | int]:
  """How often the right entry of the whole knowledge base is among the first.

  Args:
    params: of the encoder.
    drawings: by split and kind.
    split: whose pictures ask; entries of all splits answer.
  """

  def encode(pixels):
    return np.asarray(apply({"params": params}, jnp.asarray(pixels / 255)))

  apply = jax.jit(small_image_encoder.PictureEncoder().apply)
  vectors, start, row = [], {}, 0
  for part in drawings:
    for name, drawn in drawings[part].items():
      start[part, name] = row
      row += len(drawn.indexed)
      vectors.append(encode(drawn.indexed))
  entries = np.concatenate(vectors)
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
  world = _WORLD.value or sources.world_folder()
  start = time.time()
  drawings = {split: read(world, split) for split in ("train", "val", "test")}
  params = train(drawings["train"], _STEPS.value, _SEED.value)
  seconds = round(time.time() - start)
  os.makedirs(_OUT.value, exist_ok=True)
  path = os.path.join(_OUT.value, "picture_encoder.safetensors")
  small_image_encoder.save(path, params)
  params = small_image_encoder.load(
    path
  )  # As it will be used, in float16's precision.
  card = dict(
    command="python -m tools.georouter.train_image_encoder "
    f"--steps={_STEPS.value} --seed={_SEED.value} --out=FOLDER",
    seconds=seconds,
    jax=jax.__version__,
    parameters=sum(x.size for x in jax.tree.leaves(params)),
    **recall(params, drawings, "val"),
    **recall(params, drawings, "test"),
  )
  with open(
    os.path.join(_OUT.value, "picture_encoder.json"), "w", encoding="utf-8"
  ) as file:
    json.dump(card, file, indent=2)
    file.write("\n")
  logging.info("Wrote %s: %s", path, card)


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  cli.run(main)
