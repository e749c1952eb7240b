"""Initial weights of a decoder that copies: a start for training from scratch.

A tiny policy must look things up in its prompt: find where the last tokens
stood before, and write what came after them.  Attention layers can do it (an
*induction* circuit), but from random weights the circuit takes millions of
tokens to appear.  Here the first and the last layer begin with one, in the
plain architecture: only initial values differ, and training may change them.

The stream has three parts: E of embeddings, and scratch S1, S2, empty at first.
R is a random projection of E, R' its first columns.

  first layer   Head 0 looks one token back and adds R x to S1 there; head 1
                looks two back and adds R' x to S2.  A query bias that is the
                key bias turned by o positions makes rotary scores
                sum_j cos(w_j (D - o)) peak at distance D = o.
  last layer    Every head has query [R x_E, R' x_S1] and key [x_S1, x_S2]: it
                looks where the two tokens before were the last two, and adds
                its share of that place's embedding; the tied head turns the sum
                into a logit.

Source: arxiv.org/abs/2209.11895 (induction heads); the initial values are ours.
"""

import jax
import jax.numpy as jnp
import numpy as np

from r1router_jax.models import qwen2_5_vl

SHARP = 40.0  # Peak of the first layer's scores, before the softmax.

WRITE = 0.1  # Of what the first layer adds, against normed states.

MATCH = 2.2  # Of the last layer's queries and keys.

COPY = 0.35  # Of what the last layer adds.


def plant(params: dict, config: qwen2_5_vl.Config, seed: int) -> dict:
  """`params` with an induction circuit in the first and last layer.

  Args:
    params: fresh parameters of a tied `QwenVL` of at least two layers, with as
      many key heads as query heads.
    config: of that model.
    seed: of the random projection.

  Raises:
    ValueError: where the model is of another shape.
  """
  if config.heads != config.kv_heads or not config.tied or config.layers < 2:
    raise ValueError(
      "config.policy.induction wants a tied head, kv_heads == heads and at "
      f"least two layers; this model has tied={config.tied}, "
      f"{config.kv_heads} of {config.heads} heads, {config.layers} layers."
    )
  d, h, half = config.hidden, config.head_size, config.head_size // 2
  rate = config.theta ** (-np.arange(half) / half)
  fast = rate > 0.1  # Tell neighbours apart; the others carry content.
  slots = np.flatnonzero(np.tile(~fast, 2))  # Of a head, for content.
  one = len(slots) * 2 // 3
  two = len(slots) - one
  s1, s2 = np.split(np.arange(d - len(slots), d), [one])
  width = d - len(slots)
  share = -(-width // config.heads)
  r = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, one)))[0]

  embed = np.array(params["embed"])
  embed[:, width:] = 0
  tree = jax.tree.map(np.array, params["layers"])
  (qw, qb), (kw, kb) = ((tree[n]["w"], tree[n]["b"]) for n in "qk")
  vw, ow = tree["v"]["w"], tree["o"]["w"]
  for head, (offset, to, columns) in enumerate(
    ((1, s1, r), (2, s2, r[:, :two]))
  ):
    at = slice(head * h, head * h + h)
    size = np.where(fast, np.sqrt(SHARP * np.sqrt(h) / fast.sum()), 0)
    qw[0][:, at] = kw[0][:, at] = vw[0][:, at] = ow[0][at] = 0
    kb[0][at] = np.concatenate([size, 0 * size])
    # rotate(q, t) . rotate(k, s) = sum_j size^2 cos(w_j (t - s - offset)).
    turn = rate * offset
    qb[0][at] = np.concatenate([size * np.cos(turn), -size * np.sin(turn)])
    vw[0][:width, at][:, : columns.shape[1]] = columns
    ow[0][at][np.arange(len(to)), to] = WRITE
  for head in range(config.heads):
    at = slice(head * h, head * h + h)
    part = np.arange(head * share, min((head + 1) * share, width))
    qw[-1][:, at] = kw[-1][:, at] = vw[-1][:, at] = ow[-1][at] = 0
    query = np.zeros((d, len(slots)))
    query[:width, :one], query[s1[:two], np.arange(one, one + two)] = r, 1
    qw[-1][:, at][:, slots] = MATCH * query
    kw[-1][:, at][np.arange(width, d), slots] = MATCH
    vw[-1][:, at][part, np.arange(len(part))] = 1
    ow[-1][at][np.arange(len(part)), part] = COPY
  return jax.tree.map(jnp.asarray, params | {"embed": embed, "layers": tree})
