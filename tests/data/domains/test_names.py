"""Invented names: none is given twice."""

import numpy as np

from r1router_jax.data.domains import names
from r1router_jax.data.domains.lexicon import load_lexicon


class GivenNames(set):
  """Names given before, which the first 60 names tried are among."""

  tries = 0

  def __contains__(self, name):
    self.tries += 1
    return self.tries <= 60 or super().__contains__(name)


def make_names(used):
  phrases = load_lexicon("test").phrases
  return names.NameMaker(phrases, np.random.default_rng(0), used)


def test_no_name_is_given_twice_with_or_without_its_article():
  maker = make_names(set())
  # A pattern of one name, too, has others in the end.
  given = [maker.fill(pattern) for pattern in ("the Fox", "Fox") * 20]
  assert len({name.removeprefix("the ") for name in given}) == 40


def test_name_that_is_given_was_not_given_before():
  used = GivenNames()
  make_names(used).fill("Fox")
  assert used.tries == 61
