"""Draws one question at a time, of one family, about countries of one split.

The method of a family has the family's name; it returns the question's row, or
None if the facts that were drawn make no good question.  Beside the columns of
a file a row has "said": the values that the question claims or gives, or the
color or the part of a flag that it names.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from r1router_jax.data.countries import (
  flag_colors,
  gold_hops,
  relations,
  wordings,
)
from r1router_jax.data.countries.country import Country
from r1router_jax.data.countries.gold_hops import FactWorld
from r1router_jax.data.countries.kb_passages import format_value

Pair = tuple[Country, Country, str]  # Two countries and a field to compare.


class QuestionGenerator:
  """Draws questions about the countries of one split.

  Args:
    world: the facts to ask for.
    split: "train", "val" or "test".
    rng: the source of all random choices.
    more: further wordings, see `steps.load_more_wordings`.
  """

  def __init__(
    self,
    world: FactWorld,
    split: str,
    rng: random.Random,
    more: Mapping[str, Any] | None = None,
  ):
    self._more = more or {}
    self._world = world
    self._rng = rng
    self._split = split
    self._members = [c for c in world.countries if c.split == split]
    self._flagged = [c for c in self._members if c.id in world.clear_flags]

  # --- One hop ----------------------------------------------------------------

  def text_1hop(self) -> dict | None:
    """Ask for a fact in the text knowledge base."""
    return self._fact_question("text")

  def table_1hop(self) -> dict | None:
    """Ask for a fact in the table knowledge base."""
    return self._fact_question("table")

  def image_1hop(self) -> dict | None:
    """Ask for the country of a flag."""
    country = self._rng.choice(self._flagged)
    text = self._pick_wording("which_flag")
    hop = self._world.flag_hop(country)
    return self._make_row(text, hop["answers"], [country], [hop], country)

  def _fact_question(self, kb: str) -> dict:
    country, field = self._draw_country(self._fields_in(kb))
    hop = self._world.fact_hop(country, field)
    text = self._ask_words(field, country.name)
    return self._make_row(text, hop["answers"], [country], [hop])

  # --- An image, then a fact --------------------------------------------------

  def image_text_2hop(self) -> dict | None:
    """Ask for a fact in the text about the country of a flag."""
    return self._flag_fact_question("text")

  def image_table_2hop(self) -> dict | None:
    """Ask for a fact in a table about the country of a flag."""
    return self._flag_fact_question("table")

  def map_text_2hop(self) -> dict | None:
    """Ask for a fact in the text about the country on a map."""
    mapped = [c for c in self._members if c.id in self._world.maps]
    country, field = self._draw_country(self._fields_in("text"), mapped)
    text = self._ask_words(field, self._rng.choice(wordings.MAP))
    hops = [self._world.map_hop(country), self._world.fact_hop(country, field)]
    row = self._make_row(text, hops[-1]["answers"], [country], hops)
    return row | dict(image=self._world.maps[country.id])

  def _flag_fact_question(self, kb: str) -> dict:
    country, field = self._draw_country(self._fields_in(kb), self._flagged)
    text = self._ask_words(field, self._flag_words())
    hops = [self._world.flag_hop(country), self._world.fact_hop(country, field)]
    return self._make_row(text, hops[-1]["answers"], [country], hops, country)

  # --- Two countries ----------------------------------------------------------

  def table_compare_2hop(self) -> dict | None:
    """Ask which of two countries has more, by tables."""
    return self._comparison("table")

  def text_compare_2hop(self) -> dict | None:
    """Ask which of two countries has more, by the text."""
    return self._comparison("text")

  def image_table_table_3hop(self) -> dict | None:
    """Ask which has more, the country of a flag or a named one."""
    pair = self._draw_pair("table", self._flagged)
    if pair is None:
      return None
    one, other, field = pair
    names = [self._flag_words(), other.name]
    text, winner = self._comparison_words(pair, names)
    hops = [
      self._world.flag_hop(one),
      self._world.fact_hop(one, field),
      self._world.fact_hop(other, field),
    ]
    answers = gold_hops.country_answers(winner)
    return self._make_row(text, answers, [one, other], hops, one)

  def _comparison(self, kb: str) -> dict | None:
    pair = self._draw_pair(kb)
    if pair is None:
      return None
    one, other, field = pair
    text, winner = self._comparison_words(pair, [one.name, other.name])
    hops = [self._world.fact_hop(c, field) for c in (one, other)]
    answers = gold_hops.country_answers(winner)
    return self._make_row(text, answers, [one, other], hops)

  def _comparison_words(
    self, pair: Pair, names: Sequence[str]
  ) -> tuple[str, Country]:
    """Return a comparison of two countries, called `names`, and the winner."""
    one, other, field = pair
    ask_larger = self._rng.random() < 0.75
    above, below = self._verbs(field)
    verb = self._rng.choice(above if ask_larger else below)
    text = self._pick_wording("compare")
    text = text.replace("VERB", verb).format(*names)
    choose = max if ask_larger else min
    winner = choose(
      one, other, key=lambda c: gold_hops.comparable_value(c, field)
    )
    return text, winner

  # --- A country described by a fact of its own -------------------------------

  def text_table_2hop(self) -> dict | None:
    """Ask for a fact in a table about a country that a fact describes."""
    return self._bridge_question("table")

  def text_text_2hop(self) -> dict | None:
    """Ask for a fact in the text about a country that a fact describes."""
    return self._bridge_question("text")

  def _bridge_question(self, kb: str) -> dict | None:
    country, bridge = self._draw_country(relations.BRIDGE_FIELDS)
    if not self._world.is_unique_fact(bridge, country):
      return None
    fields = [f for f in self._fields_in(kb) if f != bridge]
    country, field = self._draw_country(fields, [country])
    words = self._pick_wording("bridges", bridge)
    words = words.format(country.names[bridge])
    hops = [
      self._world.bridge_hop(country, bridge),
      self._world.fact_hop(country, field),
    ]
    text = self._ask_words(field, words)
    return self._make_row(text, hops[-1]["answers"], [country], hops)

  # --- Yes or no --------------------------------------------------------------

  def tabfact_yesno(self) -> dict | None:
    """Ask whether a claim about one or two countries in tables is true."""
    if self._rng.random() < 0.6:
      return self._claim_question("table")
    pair = self._draw_pair("table")
    if pair is None:
      return None
    one, other, field = pair
    verb = self._rng.choice(
      [v.replace(" the ", " a ") for v in self._verbs(field)[0]]
    )
    if "larger" not in verb and "more" not in verb and "higher" not in verb:
      return None  # "is bigger by area than" would read badly.
    text = self._pick_wording("check_pair")
    text = text.replace("VERB", verb).format(one.name, other.name)
    value, other_value = (
      gold_hops.comparable_value(c, field) for c in pair[:2]
    )
    hops = [self._world.fact_hop(c, field) for c in (one, other)]
    answers = gold_hops.yes_no_answers(value > other_value)
    return self._make_row(text, answers, [one, other], hops)

  def text_yesno(self) -> dict | None:
    """Ask whether a claim about a country in the text is true."""
    return self._claim_question("text")

  def _claim_question(self, kb: str) -> dict | None:
    country, field = self._draw_country(self._fields_in(kb))
    is_true = self._rng.random() < 0.5
    claim = format_value(country, field)
    if not is_true:
      # The false claim is the same fact of another country.
      liar, _ = self._draw_country([field])
      truth, claim = f" {claim} ", format_value(liar, field)
      if f" {claim} " in truth or truth in f" {claim} ":
        return None  # "federal republic" is half true of a "republic".
    hop = self._world.fact_hop(country, field)
    text = self._pick_wording("check")
    text = text.replace("NOUN", field).replace("VALUE", claim)
    answers = gold_hops.yes_no_answers(is_true)
    text = text.format(country.name)
    return self._make_row(text, answers, [country], [hop], said=(claim,))

  # --- Nothing to look up -----------------------------------------------------

  def none_text(self) -> dict | None:
    """Ask for what the question itself says; it still looks like a search."""
    if self._rng.random() < 0.4:
      kb = self._rng.choice(("text", "table"))
      country, field = self._draw_country(self._fields_in(kb))
      claim = format_value(country, field)
      given = self._pick_wording("given")
      given = given.replace("NOUN", field).replace("VALUE", claim)
      given = given.format(country.name)
      text = f"{given} {self._ask_words(field, country.name)}"
      answers = gold_hops.accepted_answers(country, field)
      return self._make_row(text, answers, [country], [])

    pair = self._draw_pair(self._rng.choice(("text", "table")))
    if pair is None:
      return None
    one, other, field = pair
    said = [format_value(country, field) for country in (one, other)]
    facts = self._pick_wording("given_pair").replace("NOUN", field)
    facts = facts.format(one.name, said[0], other.name, said[1])
    text, winner = self._comparison_words(pair, [one.name, other.name])
    answers = gold_hops.country_answers(winner)
    text = f"{facts} {text}"
    return self._make_row(text, answers, [one, other], [], said=said)

  def none_visual(self) -> dict | None:
    """Ask for a color in the flag; whose flag it is does not matter."""
    country = self._rng.choice(self._flagged)
    if self._rng.random() < 0.6:
      shares = self._world.color_shares(country, "all")
      is_true = self._rng.random() < 0.5
      # Colors that the flag clearly has, or clearly has not.
      named = [
        color
        for color, share in shares.items()
        if (share > 0.08 if is_true else share < 0.003)
      ]
      if not named:
        return None
      text, color = self._pick_wording("has_color"), self._rng.choice(named)
      text, answers = text.format(color), gold_hops.yes_no_answers(is_true)
      return self._make_row(text, answers, [country], [], country, (color,))

    part = self._rng.choice(flag_colors.PARTS)
    shares = self._world.color_shares(country, part)
    color = max(shares, key=shares.get)
    if shares[color] < 0.9:
      return None
    text = self._pick_wording("what_color").format(part)
    return self._make_row(text, [color], [country], [], country, (part,))

  # --- Random choices ---------------------------------------------------------

  def _fields_in(self, kb: str) -> list[str]:
    """Return the fields whose preferred knowledge base this is."""
    return [r.field for r in relations.RELATIONS.values() if r.kbs[0] == kb]

  def _draw_country(
    self, fields: Sequence[str], members: list[Country] | None = None
  ) -> tuple[Country, str]:
    """Draw a field, then a country that has it, so that fields are even."""
    members = members or self._members
    fields = [f for f in fields if any(format_value(c, f) for c in members)]
    field = self._rng.choice(fields)
    known = [c for c in members if format_value(c, field)]
    return self._rng.choice(known), field

  def _draw_pair(
    self, kb: str, first: list[Country] | None = None
  ) -> Pair | None:
    """Draw two countries that are far enough apart in a field to compare."""
    field = self._rng.choice(
      [f for f in self._fields_in(kb) if relations.RELATIONS[f].above]
    )
    one, _ = self._draw_country([field], first)
    other, _ = self._draw_country([field])
    low, high = sorted(
      gold_hops.comparable_value(c, field) for c in (one, other)
    )
    # Years differ by ten or more; of numbers one is twice the other, or
    # sometimes only a fifth larger.
    far = (
      high - low >= 10
      if field == "independence date"
      else high >= 2 * low or (high >= 1.2 * low and self._rng.random() < 0.1)
    )
    return (one, other, field) if one is not other and far else None

  def _draw_held_out(self) -> bool:
    """Decide whether a wording is held out, which it never is in training."""
    return self._split != "train" and self._rng.random() < 0.5

  def _pick_wording(self, name: str, field: str = "") -> str:
    """Draw one of the wordings of a name, of a field if they differ by that."""
    held = "HELD_" if self._draw_held_out() else ""
    known = getattr(wordings, f"{held}{name.upper()}")
    more = self._more.get(name, {} if field else ())
    if field:
      known, more = known[field], more.get(field, ())
    return self._rng.choice((*known, *more))

  def _ask_words(self, field: str, name: str) -> str:
    """Ask for a field of a country that is called `name`."""
    relation = relations.RELATIONS[field]
    more_frames = self._more.get("frames", ())
    more_of_field = self._more.get("fields", {}).get(field, ((), ()))
    known = relation.wordings(
      self._draw_held_out(), tuple(more_frames), *map(tuple, more_of_field)
    )
    return self._rng.choice(known).format(name)

  def _verbs(self, field: str) -> tuple[Sequence[str], Sequence[str]]:
    """Return the verb phrases for "has a larger" and "a smaller value"."""
    relation = relations.RELATIONS[field]
    above, below = self._more.get("verbs", {}).get(field, ((), ()))
    return (*relation.above, *above), (*relation.below, *below)

  def _flag_words(self) -> str:
    return self._pick_wording("flag")

  def _make_row(
    self,
    text: str,
    answers: Sequence[str],
    subjects: Sequence[Country],
    hops: list[dict],
    flag_of: Country | None = None,
    said: Sequence[str] = (),
  ) -> dict:
    """Make the row of a question, its text as this user would type it.

    For `said` see the top of this module.
    """
    if self._rng.random() < 0.2:
      prefix = self._pick_wording("prefixes")
      starts_with_name = any(text.startswith(c.name) for c in subjects)
      text = prefix + (text if starts_with_name else _lower_first(text))
    elif self._rng.random() < 0.2:
      text = _lower_first(text)
    else:
      text = text[0].upper() + text[1:]
    if self._rng.random() < 0.1:
      text = text.rstrip("?.")
    return dict(
      text=text,
      answers=list(answers),
      image=self._world.flags[flag_of.id] if flag_of else "",
      subjects=[c.id for c in subjects],
      hops=hops,
      said=tuple(said),
    )


def _lower_first(text: str) -> str:
  return text if text.startswith("I ") else text[0].lower() + text[1:]
