import itertools
import random

import numpy as np
import pytest

from r1router_jax.metrics import answers


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_matches_enumeration(k):
  for right in itertools.product((0, 1), repeat=4):
    draws = list(itertools.combinations(right, k))
    wanted = sum(map(any, draws)) / len(draws)
    assert answers.pass_at_k(np.array([right], float), k) == pytest.approx(
      wanted
    )


def test_majority_vote_matches_counting():
  rng = random.Random(0)
  asked = [
    [rng.choice(("", "a", "b", "c")) for _ in range(5)] for _ in range(200)
  ]
  for said, at in zip(asked, answers.majority_vote(asked), strict=True):
    counts = {word: said.count(word) for word in said if word}
    best = max(counts.values(), default=0)
    ties = [n for n, word in enumerate(said) if counts.get(word) == best]
    assert at == (ties[0] if counts else 0)


def test_pass_at_more_than_the_samples_is_rejected():
  with pytest.raises(ValueError, match="pass@3 of 2 samples"):
    answers.pass_at_k(np.ones((1, 2)), 3)
