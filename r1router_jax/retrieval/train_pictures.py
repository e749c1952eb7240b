r"""Trains the picture encoder of the embedded world.

  python -m r1router_jax.retrieval.train_pictures --out=FOLDER

A question shows a flag as another artist drew it (round, with a palette of its
own), or a map; the knowledge base holds its 4:3 drawing.  Two views x_i, y_i of
the same picture attract each other, views of different pictures repel:

  loss = mean_i - log softmax_j(x_i . y_j / t)_i, both ways,   t is learned

Only pictures of training countries are used.  They are few, so each step makes
new ones of them: both views are mirrored and have their colours exchanged in
the same way, which gives a flag of a country that does not exist.  Then each
view alone is moved, resized, tinted; a flag may be cut round, a map redrawn in
other colours or as a line.

Axes:  B pictures in a batch   S pixels a side
Source: arxiv.org/abs/1807.03748 (InfoNCE).
"""

import functools
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags, logging
from jaxtyping import Array, Float

from r1router_jax import commands
from r1router_jax.inputs import images
from r1router_jax.models import picture
from r1router_jax.retrieval import corpora

_OUT = flags.DEFINE_string(
    "out", None, "Folder for picture_encoder.safetensors and its .json.",
    allow_override=True)
_WORLD = flags.DEFINE_string(
    "world", "", "Folder of countries.jsonl and pictures/; the embedded world "
    "if empty.")
_STEPS = flags.DEFINE_integer("steps", 400, "Updates.", allow_override=True)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of weights, batches and views.", allow_override=True)

FLAGS_IN_BATCH = 96
MAPS_IN_BATCH = 32
RATE = 2e-3  # Peak learning rate of AdamW.
_COORDINATES = (np.arange(picture.SIDE) - (picture.SIDE - 1) / 2) / (
    picture.SIDE / 2)  # From -1 to 1.

Picture = Float[Array, "S S 3"]


def read(world: str, split: str) -> dict[str, np.ndarray]:
  """Pixels of a split: `indexed` and `asked` flags in one order, `maps`."""
  with open(os.path.join(world, "countries.jsonl"), encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
  codes = [row["iso"] for row in rows if row["split"] == split]
  def pixels(kind, codes):
    return np.stack([images.square(images.load(
        f"pictures/{kind}/{code}.png", world), picture.SIDE) for code in codes])
  def drawn(kind):
    return [code for code in codes if os.path.exists(
        os.path.join(world, "pictures", kind, f"{code}.png"))]
  both = [code for code in drawn("kb") if code in set(drawn("query"))]
  return dict(indexed=pixels("kb", both), asked=pixels("query", both),
              maps=pixels("map", drawn("map")))


def warp(key: Array, image: Picture, shift: float, zoom: float,
         turn: float) -> Picture:
  """Moves, resizes and turns by at most so much (of half a side, radians)."""
  keys = jax.random.split(key, 4)
  dx, dy = jax.random.uniform(keys[0], (2,), minval=-shift, maxval=shift)
  angle = jax.random.uniform(keys[1], minval=-turn, maxval=turn)
  scale = jnp.exp(jax.random.uniform(keys[2], (2,), minval=-zoom, maxval=zoom))
  y, x = jnp.meshgrid(_COORDINATES, _COORDINATES, indexing="ij")
  u = (jnp.cos(angle) * x - jnp.sin(angle) * y) * scale[0] + dx
  v = (jnp.sin(angle) * x + jnp.cos(angle) * y) * scale[1] + dy
  where = [(c + 1) * picture.SIDE / 2 - 0.5 for c in (v, u)]
  return jnp.stack([jax.scipy.ndimage.map_coordinates(
      image[..., c], where, order=1, mode="nearest") for c in range(3)], -1)


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


def cut_round(key: Array, image: Picture) -> Picture:
  """The middle of a 4:3 flag, as tall as before, in a disc on grey."""
  stretch = jax.random.uniform(key, minval=0.72, maxval=1.0)
  y, x = jnp.meshgrid(_COORDINATES, _COORDINATES, indexing="ij")
  where = [(c + 1) * picture.SIDE / 2 - 0.5 for c in (y * 0.75, x * stretch)]
  disc = jnp.stack([jax.scipy.ndimage.map_coordinates(
      image[..., c], where, order=1, mode="nearest") for c in range(3)], -1)
  return jnp.where((x * x + y * y < 1)[..., None], disc, 0.5)


def view_flags(key: Array, indexed: Picture, asked: Picture
               ) -> tuple[Picture, Picture]:
  """Two views of a flag, the second round: drawn so, or cut from the first."""
  keys = jax.random.split(key, 7)
  cut = cut_round(keys[0], indexed)
  asked = jnp.where(jax.random.bernoulli(keys[1], 0.25), cut, asked)
  indexed, asked = exchange(keys[2], indexed, asked)
  return (warp(keys[3], tint(keys[4], indexed), 0.04, 0.06, 0.03),
          warp(keys[5], tint(keys[6], asked), 0.05, 0.10, 0.06))


def view_maps(key: Array, image: Picture) -> tuple[Picture, Picture]:
  """Two drawings of a map."""
  keys = jax.random.split(key, 3)
  _, image = exchange(keys[0], image, image)
  return redraw(keys[1], image), redraw(keys[2], image)


def redraw(key: Array, image: Picture) -> Picture:
  """The land of a white map in other colours, filled or as a line, moved."""
  keys = jax.random.split(key, 7)
  land = jnp.max(1 - image, axis=-1, keepdims=True)
  land /= jnp.maximum(jnp.max(land), 1e-3)
  window = (3, 3, 1)
  inner = -jax.lax.reduce_window(-land, -jnp.inf, jax.lax.max, window,
                                 (1, 1, 1), "SAME")
  thick = jax.lax.reduce_window(land, -jnp.inf, jax.lax.max, window,
                                (1, 1, 1), "SAME")
  style = jax.random.choice(keys[0], 4, p=jnp.array([0.6, 0.15, 0.15, 0.1]))
  ink = jnp.stack([land, land - inner, thick - inner, thick])[style]
  paper = jax.random.uniform(keys[1], (3,), minval=0.8, maxval=1.0)
  colour = jax.random.uniform(keys[2], (3,), minval=0.0, maxval=0.6)
  # Often as the house draws maps, so that those are told apart best.
  usual = jax.random.bernoulli(keys[3], 0.4)
  drawn = jnp.where(usual, image, paper + ink * (colour - paper))
  return warp(keys[4], drawn, 0.08, 0.10, 0.08)


def loss(params: dict, x: Float[Array, "B S S 3"], y: Float[Array, "B S S 3"]
         ) -> Float[Array, ""]:
  """The formula above."""
  vectors = picture.PictureEncoder().apply(
      {"params": params["encoder"]}, jnp.concatenate([x, y]))
  a, b = jnp.split(vectors, 2)
  logits = a @ b.T * jnp.exp(params["log_scale"])
  right = jnp.arange(len(x))
  return (optax.softmax_cross_entropy_with_integer_labels(logits, right).mean()
          + optax.softmax_cross_entropy_with_integer_labels(
              logits.T, right).mean()) / 2


def train(world: str, steps: int, seed: int) -> dict:
  """Parameters of the trained encoder."""
  pixels = {k: jnp.asarray(v) for k, v in read(world, "train").items()}
  key = jax.random.key(seed)
  params = dict(encoder=picture.init(key), log_scale=jnp.log(10.0))
  tx = optax.adamw(
      optax.warmup_cosine_decay_schedule(0, RATE, steps // 10, steps),
      weight_decay=0.05)

  @jax.jit
  def update(params, opt, key):
    keys = jax.random.split(key, 4)
    def draw(key, kind, n):
      rows = jax.random.choice(
          key, len(pixels[kind]), (min(n, len(pixels[kind])),), replace=False)
      return rows, jax.random.split(key, len(rows))
    rows, seeds = draw(keys[0], "indexed", FLAGS_IN_BATCH)
    flags_xy = jax.vmap(view_flags)(
        seeds, pixels["indexed"][rows] / 255, pixels["asked"][rows] / 255)
    rows, seeds = draw(keys[1], "maps", MAPS_IN_BATCH)
    maps_xy = jax.vmap(view_maps)(seeds, pixels["maps"][rows] / 255)
    x, y = (jnp.concatenate(pair)
            for pair in zip(flags_xy, maps_xy, strict=True))
    value, grads = jax.value_and_grad(loss)(params, x, y)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, value

  opt = tx.init(params)
  for step in range(steps):
    params, opt, value = update(params, opt, jax.random.fold_in(key, step))
    if (step + 1) % 50 == 0:
      logging.info("step %d of %d: loss %.3f", step + 1, steps, value)
  return params["encoder"]


def recall(params: dict, world: str, split: str) -> dict[str, float]:
  """How often the right entry of the whole image knowledge base comes first.

  Args:
    params: of the encoder.
    world: its folder.
    split: whose pictures ask; entries of all splits answer.
  """
  encode = jax.jit(functools.partial(
      picture.PictureEncoder().apply, {"params": params}))
  splits = sorted(("train", "val", "test"), key=lambda s: s != split)
  pixels = [read(world, s) for s in splits]
  entries = np.concatenate(
      [p["indexed"] for p in pixels] + [p["maps"] for p in pixels]) / 255
  entries = encode(jnp.asarray(entries, jnp.float32))
  first_map = sum(len(p["indexed"]) for p in pixels)
  maps = jnp.asarray(pixels[0]["maps"] / 255, jnp.float32)
  redrawn = jax.vmap(redraw)(jax.random.split(jax.random.key(1), len(maps)),
                             maps)
  figures = {}
  for name, asked, start in (
      ("flags", jnp.asarray(pixels[0]["asked"] / 255, jnp.float32), 0),
      ("maps", maps, first_map), ("redrawn_maps", redrawn, first_map)):
    scores = np.asarray(encode(asked) @ entries.T)
    right = scores[np.arange(len(scores)), start + np.arange(len(scores))]
    rank = (scores > right[:, None]).sum(axis=1)
    for k in (1, 3, 5):
      figures[f"{split}_{name}_recall@{k}"] = round(float((rank < k).mean()), 3)
  return figures


def main(_) -> None:
  world = _WORLD.value or corpora.world_folder()
  start = time.time()
  params = train(world, _STEPS.value, _SEED.value)
  seconds = round(time.time() - start)
  os.makedirs(_OUT.value, exist_ok=True)
  path = os.path.join(_OUT.value, "picture_encoder.safetensors")
  picture.save(path, params)
  params = picture.load(path)  # As it will be used, in float16's precision.
  card = dict(
      command="python -m r1router_jax.retrieval.train_pictures "
              f"--steps={_STEPS.value} --seed={_SEED.value} --out=FOLDER",
      seconds=seconds, jax=jax.__version__,
      parameters=sum(x.size for x in jax.tree.leaves(params)),
      **recall(params, world, "val"), **recall(params, world, "test"))
  with open(os.path.join(_OUT.value, "picture_encoder.json"), "w",
            encoding="utf-8") as file:
    json.dump(card, file, indent=2)
    file.write("\n")
  logging.info("Wrote %s: %s", path, card)


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  commands.run(main)
