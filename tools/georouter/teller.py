"""Draws one question at a time, of one family, about countries of one split."""

import random

from tools.georouter import hops, relations, wordings
from tools.georouter.hops import World


class Teller:
  """Draws one question at a time; None where a draw does not work out."""

  def __init__(self, world: World, split: str, rng: random.Random):
    self._world = world
    self._rng = rng
    self._split = split
    self._members = [c for c in world.countries if c.split == split]
    self._flagged = [c for c in self._members if c.id in world.clear_flags]

  # One hop.

  def text_1hop(self):
    return self._fact("text")

  def table_1hop(self):
    return self._fact("table")

  def image_1hop(self):
    country = self._rng.choice(self._flagged)
    text = self._pick(wordings.WHICH_FLAG, wordings.HELD_WHICH_FLAG)
    hop = self._world.flag_hop(country)
    return self._told(text, hop["answers"], [country], [hop], country)

  def _fact(self, kb):
    country, field = self._country_with(self._fields(kb))
    hop = self._world.fact_hop(country, field)
    text = self._ask(field, country.name)
    return self._told(text, hop["answers"], [country], [hop])

  # A picture, then a fact.

  def image_text_2hop(self):
    return self._pictured("text")

  def image_table_2hop(self):
    return self._pictured("table")

  def map_text_2hop(self):
    mapped = [c for c in self._members if c.id in self._world.maps]
    country, field = self._country_with(self._fields("text"), mapped)
    text = self._ask(field, self._rng.choice(wordings.MAP))
    pair = [self._world.map_hop(country), self._world.fact_hop(country, field)]
    told = self._told(text, pair[-1]["answers"], [country], pair)
    return told | dict(image=self._world.maps[country.id])

  def _pictured(self, kb):
    country, field = self._country_with(self._fields(kb), self._flagged)
    text = self._ask(field, self._flag_words())
    pair = [self._world.flag_hop(country), self._world.fact_hop(country, field)]
    return self._told(text, pair[-1]["answers"], [country], pair, country)

  # Two countries.

  def table_compare_2hop(self):
    return self._compare("table")

  def text_compare_2hop(self):
    return self._compare("text")

  def image_table_table_3hop(self):
    drawn = self._pair("table", self._flagged)
    if drawn is None:
      return None
    one, other, field = drawn
    names = [self._flag_words(), other.name]
    text, winner = self._which(one, other, field, names)
    trace = [
      self._world.flag_hop(one),
      self._world.fact_hop(one, field),
      self._world.fact_hop(other, field),
    ]
    return self._told(text, hops.name_answers(winner), [one, other], trace, one)

  def _compare(self, kb):
    drawn = self._pair(kb)
    if drawn is None:
      return None
    one, other, field = drawn
    text, winner = self._which(one, other, field, [one.name, other.name])
    trace = [self._world.fact_hop(c, field) for c in (one, other)]
    return self._told(text, hops.name_answers(winner), [one, other], trace)

  def _which(self, one, other, field, names):
    up = self._rng.random() < 0.75
    relation = relations.ALL[field]
    verb = self._rng.choice(relation.above if up else relation.below)
    text = self._pick(wordings.COMPARE, wordings.HELD_COMPARE)
    text = text.replace("VERB", verb).format(*names)
    rank = lambda c: hops.rank(c, field)
    return text, max(one, other, key=rank) if up else min(one, other, key=rank)

  # A country told by a fact of its own.

  def text_table_2hop(self):
    return self._bridged("table")

  def text_text_2hop(self):
    return self._bridged("text")

  def _bridged(self, kb):
    country, bridge = self._country_with(relations.BRIDGES)
    if not self._world.names_one(bridge, country):
      return None
    fields = [f for f in self._fields(kb) if f != bridge]
    country, field = self._country_with(fields, [country])
    words = self._pick(wordings.BRIDGES[bridge], wordings.HELD_BRIDGES[bridge])
    words = words.format(country.names[bridge])
    pair = [
      self._world.bridge_hop(country, bridge),
      self._world.fact_hop(country, field),
    ]
    return self._told(
      self._ask(field, words), pair[-1]["answers"], [country], pair
    )

  # Yes or no.

  def tabfact_yesno(self):
    if self._rng.random() < 0.6:
      return self._check("table")
    drawn = self._pair("table")
    if drawn is None:
      return None
    one, other, field = drawn
    verb = self._rng.choice(
      [v.replace(" the ", " a ") for v in relations.ALL[field].above]
    )
    if "larger" not in verb and "more" not in verb and "higher" not in verb:
      return None  # "is bigger by area than" would read badly.
    text = self._pick(wordings.CHECK_PAIR, wordings.HELD_CHECK_PAIR)
    text = text.replace("VERB", verb).format(one.name, other.name)
    true = hops.rank(one, field) > hops.rank(other, field)
    trace = [self._world.fact_hop(c, field) for c in (one, other)]
    return self._told(text, hops.yes_no(true), [one, other], trace)

  def text_yesno(self):
    return self._check("text")

  def _check(self, kb):
    country, field = self._country_with(self._fields(kb))
    true = self._rng.random() < 0.5
    claim = hops.value(country, field)
    if not true:
      liar, _ = self._country_with([field])
      truth, claim = f" {claim} ", hops.value(liar, field)
      if f" {claim} " in truth or truth in f" {claim} ":
        return None  # "federal republic" is half true of a "republic".
    hop = self._world.fact_hop(country, field)
    text = self._pick(wordings.CHECK, wordings.HELD_CHECK)
    text = text.replace("NOUN", field).replace("VALUE", claim)
    return self._told(
      text.format(country.name), hops.yes_no(true), [country], [hop]
    )

  # Nothing to look up.

  def none_text(self):
    """The evidence stands in the question, which still looks like a hunt."""
    if self._rng.random() < 0.4:
      kb = self._rng.choice(("text", "table"))
      country, field = self._country_with(self._fields(kb))
      claim = hops.value(country, field)
      given = self._pick(wordings.GIVEN, wordings.HELD_GIVEN)
      given = given.replace("NOUN", field).replace("VALUE", claim)
      text = f"{given.format(country.name)} {self._ask(field, country.name)}"
      return self._told(text, hops.answers(country, field), [country], [])
    drawn = self._pair(self._rng.choice(("text", "table")))
    if drawn is None:
      return None
    one, other, field = drawn
    facts = self._pick(wordings.GIVEN_PAIR, wordings.HELD_GIVEN_PAIR)
    facts = facts.replace("NOUN", field).format(
      one.name, hops.value(one, field), other.name, hops.value(other, field)
    )
    text, winner = self._which(one, other, field, [one.name, other.name])
    return self._told(
      f"{facts} {text}", hops.name_answers(winner), [one, other], []
    )

  def none_visual(self):
    """The picture itself answers; where the flag flies does not matter."""
    country = self._rng.choice(self._flagged)
    if self._rng.random() < 0.6:
      shares = self._world.colours(country, "all")
      true = self._rng.random() < 0.5
      named = [
        colour
        for colour, share in shares.items()
        if (share > 0.08 if true else share < 0.003)
      ]
      if not named:
        return None
      text = self._pick(wordings.HAS_COLOUR, wordings.HELD_HAS_COLOUR)
      text = text.format(self._rng.choice(named))
      return self._told(text, hops.yes_no(true), [country], [], country)
    part = self._rng.choice(("top", "bottom", "left", "right"))
    shares = self._world.colours(country, part)
    colour = max(shares, key=shares.get)
    if shares[colour] < 0.9:
      return None
    text = self._pick(wordings.WHAT_COLOUR, wordings.HELD_WHAT_COLOUR)
    return self._told(text.format(part), [colour], [country], [], country)

  # Drawing.

  def _fields(self, kb):
    """Fields whose preferred place is this knowledge base."""
    return [r.field for r in relations.ALL.values() if r.kbs[0] == kb]

  def _country_with(self, fields, members=None):
    """A field first, then a country that has it, so that fields are even."""
    members = members or self._members
    fields = [f for f in fields if any(hops.value(c, f) for c in members)]
    field = self._rng.choice(fields)
    return self._rng.choice([c for c in members if hops.value(c, field)]), field

  def _pair(self, kb, first=None):
    """Two countries far enough apart in a field to compare."""
    field = self._rng.choice(
      [f for f in self._fields(kb) if relations.ALL[f].above]
    )
    one, _ = self._country_with([field], first)
    other, _ = self._country_with([field])
    low, high = sorted(hops.rank(c, field) for c in (one, other))
    far = (
      high - low >= 10
      if field == "independence date"
      else high >= 2 * low or (high >= 1.2 * low and self._rng.random() < 0.1)
    )
    return (one, other, field) if one is not other and far else None

  def _held(self):
    return self._split != "train" and self._rng.random() < 0.5

  def _pick(self, seen, held):
    return self._rng.choice(held if self._held() else seen)

  def _ask(self, field, words):
    asked = self._rng.choice(relations.ALL[field].wordings(self._held()))
    return asked.format(words)

  def _flag_words(self):
    return self._pick(wordings.FLAG, wordings.HELD_FLAG)

  def _told(self, text, answers, subjects, trace, pictured=None):
    """The row, its text as this user would type it."""
    if self._rng.random() < 0.2:
      prefix = self._pick(wordings.PREFIXES, wordings.HELD_PREFIXES)
      named = any(text.startswith(c.name) for c in subjects)
      text = prefix + (text if named else _lower(text))
    elif self._rng.random() < 0.2:
      text = _lower(text)
    else:
      text = text[0].upper() + text[1:]
    if self._rng.random() < 0.1:
      text = text.rstrip("?.")
    return dict(
      text=text,
      answers=list(answers),
      image=self._world.flags[pictured.id] if pictured else "",
      subjects=[c.id for c in subjects],
      hops=trace,
    )


def _lower(text: str) -> str:
  return text if text.startswith("I ") else text[0].lower() + text[1:]
