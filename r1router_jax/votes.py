"""What several samples of an answer are worth together.

  pass@k    that one of k is right, of n samples of which c are:
            1 - C(n - c, k) / C(n, k)
  majority  the answer that most samples give, the earliest of those that tie

Axes:  N questions   n samples
Source: arxiv.org/abs/2107.03374, equation 1 (pass@k).
"""

import collections
import math
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int


def pass_at(right: Float[np.ndarray, "N n"], k: int) -> Float[np.ndarray, " N"]:
  """The chance that one of k samples is right, without bias.

  Args:
    right: 1 where a sample is.
    k: at most n.
  """
  samples = right.shape[1]
  if not 1 <= k <= samples:
    raise ValueError(f"pass@{k} of {samples} samples: take 1 to {samples}.")
  wrong = (samples - right.sum(axis=1)).astype(int)
  return np.array([1 - math.comb(each, k) / math.comb(samples, k)
                   for each in wrong])


def majority(answers: Sequence[Sequence[Hashable]]) -> Int[np.ndarray, " N"]:
  """Which sample has each question's commonest answer.

  Args:
    answers: of each question those of its samples, equal where they say the
      same; a falsy one is no vote.
  """
  def pick(said):
    votes = collections.Counter(filter(None, said)) or collections.Counter(said)
    return said.index(max(votes, key=votes.get))  # Counters keep their order.

  return np.array([pick(list(said)) for said in answers], int)
