"""Initial weights of a decoder that copies: a start for training from scratch.

A tiny policy has to look things up in its prompt: find where the last tokens
stood before, and write what came after them.  Attention layers can do it (an
*induction* circuit), but from random weights the circuit takes millions of
tokens to appear.  Here the first and the last layer begin with one, in the
plain architecture: only initial values differ, and training may change them.

The residual stream x has three parts: the embedding x_E, and scratch space
x_S1 and x_S2, empty at first.  R is a random projection of x_E, and R' its
first columns.

  first layer   Head 0 attends one token back and adds R x_E of that token to
                S1; head 1 attends two back and adds R' x_E to S2.  A query bias
                that is the key bias turned by o positions makes rotary scores
                sum_j cos(w_j (D - o)) peak at distance D = o.
  last layer    Every head has query [R x_E, R' x_S1] and key [x_S1, x_S2]: it
                attends where the two tokens before were the last two, and adds
                its share of that token's embedding; the tied output embedding
                turns the sum into a logit.

Embeddings may begin with the meanings of words, as a sentence encoder has them:
what is learnt of one word is then known of its neighbours, too.

Source: arxiv.org/abs/2209.11895 (induction heads); the initial values are new.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from r1router_jax.common.errors import UserError
from r1router_jax.models import qwen2_5_vl

# Chosen by hand; inputs of both layers are normed states.
PREVIOUS_TOKEN_SCORE = 40.0  # Peak of the first layer's scores, before softmax.
PREVIOUS_TOKEN_OUTPUT = 0.1  # Scale of what the first layer adds.
MATCH_SCALE = 2.2  # Scale of the last layer's queries, and of its keys.
COPY_OUTPUT = 0.35  # Scale of what the last layer adds.


class _HeadWeights(NamedTuple):
  """Views of the weights of one attention head; writing changes the layer."""

  q: np.ndarray  # [D, H]
  k: np.ndarray  # [D, H]
  v: np.ndarray  # [D, H]
  o: np.ndarray  # [H, D]
  q_bias: np.ndarray  # [H]
  k_bias: np.ndarray  # [H]


def plant_induction_heads(
  params: dict,
  config: qwen2_5_vl.Config,
  seed: int,
  vectors: Float[np.ndarray, "N E"] | None = None,
) -> dict:
  """Return fresh `params` with an induction circuit in two layers.

  The seed is that of the random projection.  The meanings of the first N tokens
  are `vectors`, if given; what is 0 has none.  A model that is not tied, has
  one layer, or other numbers of key and query heads, raises UserError.
  """
  if config.heads != config.kv_heads or not config.tied or config.layers < 2:
    raise UserError(
      "config.policy.induction wants a tied head, kv_heads == heads and at "
      f"least two layers; this model has tied={config.tied}, "
      f"{config.kv_heads} of {config.heads} heads, {config.layers} layers."
    )
  # Within a head, fast rotary frequencies tell neighbours apart, and the
  # features of the slow ones carry content.
  half = config.head_size // 2
  rate = config.theta ** (-np.arange(half) / half)
  fast = rate > 0.1
  content = np.flatnonzero(np.tile(~fast, 2))

  # The stream: `width` features of the embedding, then S1 and S2.
  d, width = config.hidden, config.hidden - len(content)
  size1 = len(content) * 2 // 3
  s1, s2 = np.split(np.arange(width, d), [size1])
  normal = np.random.default_rng(seed).normal(size=(width, size1))
  # Orthonormal columns keep dot products of embeddings.
  r = np.linalg.qr(normal)[0]

  embed = np.array(params["embed"])
  if vectors is not None:
    _mix_meanings(embed[: len(vectors), :width], vectors)
  embed[:, width:] = 0  # Scratch space is empty at first.
  layers = jax.tree.map(np.array, params["layers"])
  for head, scratch, columns in ((0, s1, r), (1, s2, r[:, : len(s2)])):
    weights = _clear_head(layers, 0, head, config.head_size)
    _plant_previous_token(weights, head + 1, rate, fast, scratch, columns)
  # Heads of the last layer match alike, and share the copying.
  for head, features in enumerate(_split_evenly(width, config.heads)):
    weights = _clear_head(layers, -1, head, config.head_size)
    _plant_copy(weights, features, content, r, s1, s2)
  return jax.tree.map(jnp.asarray, params | {"embed": embed, "layers": layers})


def _mix_meanings(
  embed: Float[np.ndarray, "N W"], vectors: Float[np.ndarray, "N E"]
) -> None:
  """Add meanings to random embeddings, in place, and keep their lengths.

  Both have the same weight: random parts tell words of one meaning apart.
  """
  known = np.any(vectors, axis=1)
  centred = vectors[known] - vectors[known].mean(0)
  # The main components, as many as the embedding has room for.
  _, _, components = np.linalg.svd(centred, full_matrices=False)
  meanings = centred @ components[: embed.shape[1]].T
  meanings /= np.linalg.norm(meanings, axis=1, keepdims=True)
  length = np.linalg.norm(embed[known], axis=1).mean()
  share = np.sqrt(0.5)
  embed[known, : meanings.shape[1]] *= share
  embed[known, : meanings.shape[1]] += share * length * meanings


def _clear_head(
  layers: dict, layer: int, head: int, head_size: int
) -> _HeadWeights:
  """Set the kernels of a head to 0 and return views of its weights."""
  at = slice(head * head_size, (head + 1) * head_size)
  q, k, v = (layers[name]["w"][layer][:, at] for name in ("q", "k", "v"))
  o = layers["o"]["w"][layer][at]
  for kernel in (q, k, v, o):
    kernel[:] = 0
  q_bias, k_bias = (layers[name]["b"][layer][at] for name in ("q", "k"))
  return _HeadWeights(q, k, v, o, q_bias, k_bias)


def _plant_previous_token(
  head: _HeadWeights,
  offset: int,
  rate: np.ndarray,
  fast: np.ndarray,
  scratch: np.ndarray,
  columns: np.ndarray,
) -> None:
  """Make a head attend `offset` tokens back and write that token to scratch.

  Those of the rotary frequencies `rate` that are fast tell neighbours apart;
  the projection `columns` of the embedding is written, [width, scratch].
  """
  # rotate(q, t) . rotate(k, s) = sum_j size^2 cos(w_j (t - s - offset)).
  peak = PREVIOUS_TOKEN_SCORE * np.sqrt(len(head.q_bias))
  size = np.where(fast, np.sqrt(peak / fast.sum()), 0)
  turn = rate * offset
  # Biases are added before the rotation, so they depend on the distance alone.
  head.k_bias[:] = np.concatenate([size, 0 * size])
  head.q_bias[:] = np.concatenate([size * np.cos(turn), -size * np.sin(turn)])
  width, count = columns.shape
  head.v[:width, :count] = columns
  head.o[np.arange(count), scratch] = PREVIOUS_TOKEN_OUTPUT


def _plant_copy(
  head: _HeadWeights,
  features: np.ndarray,
  content: np.ndarray,
  r: np.ndarray,
  s1: np.ndarray,
  s2: np.ndarray,
) -> None:
  """Make a head attend after an earlier pair of the last two tokens, and copy.

  It copies `features` of the embedding; those of the head that carry content
  are `content`, and `r` is [width, S1].
  """
  width, size1 = r.shape
  # The last token is projected by R; the one before it is in S1 already.
  query = np.zeros((len(head.q), len(content)))
  query[:width, :size1] = r
  query[s1[: len(s2)], np.arange(size1, len(content))] = 1
  head.q[:, content] = MATCH_SCALE * query
  head.k[np.concatenate([s1, s2]), content] = MATCH_SCALE
  head.v[features, np.arange(len(features))] = 1
  head.o[np.arange(len(features)), features] = COPY_OUTPUT


def _split_evenly(width: int, heads: int) -> list[np.ndarray]:
  """Split the features of the embedding among heads, the last ones less."""
  share = -(-width // heads)
  return np.split(np.arange(width), np.arange(1, heads) * share)
