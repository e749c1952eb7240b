"""Invented names, in the manner of several languages.

A root is a beginning, maybe a middle and an end of one style; persons have a
first name and a surname of it.  No name is given twice, be it with an article.
"""

import itertools

import numpy as np

from r1router_jax.data.domains.lexicon import Phrases

# Beginnings, middles and ends of roots, by style.
STYLES = {
  "northern": (
    "Bjar Sten Hald Skor Vig Trol Grim Ulv Hjel Fros Kval Rag",
    "en ar ing ul a e",
    "by vik dal sund mar rud stad heim ström nes a",
  ),
  "romance": (
    "Cal Mont Ver Tor Bel Sal Fior Lam Gar Pel Quin Arz",
    "a e i o ent ar ell",
    "ano ella ero ino osa ues ado ia ezza one illa",
  ),
  "celtic": (
    "Tre Pen Caer Dun Gwy Bren Lla Kil Bal Mor Cwm Inver",
    "a o e y en an",
    "wyn rith gan loch more nagh ddan vean sant ly rick",
  ),
  "slavic": (
    "Bor Mil Stan Rad Dob Vel Zor Kras Lub Nov Tres Ostr",
    "i o a e an ov",
    "ica grad ska ovo sek nik mir čany ava owice ka",
  ),
  "japanese": (
    "Ha Ki Mo Sa Ta Yo Ni Ku Shi Ma Ho Na",
    "ka ma ri no shi to ya ze",
    "wa moto gawa saki da ne zumi ro mi tani ko",
  ),
  "arabic": (
    "Al Bar Qas Zah Far Jaz Had Sul Nar Tam Kha Rash",
    "a i u am ar",
    "ira an oun bad eem iya ifa our asha ed",
  ),
  "swahili": (
    "Mba Ki Tanga Chu Nya Bwa Mku Lu Ndo Zu Wa Msa",
    "la mbe ri ngo ta le",
    "ni ra zi wa mba tu ga ndi mo la",
  ),
  "hungarian": (
    "Szar Vár Kő Bala Nagy Zal Tisz Eger Mako Pál Gyön Her",
    "a e o ö á",
    "vár hely falva háza kút csa szeg mező di nyő",
  ),
  "greek": (
    "Thal Ker Xan Phil Ark Del Pher Lys Myr Kal Eph And",
    "a i o e y ane",
    "thos ia essa andros polis ene ikos yra mene eion",
  ),
  "polynesian": (
    "Ta Ha Mo Ra Va Fa Nu Ke Wa Pu Ao To",
    "ha na le lo fi ke ro",
    "pua nui vai ana oa mea lei riki hiti ne",
  ),
  "english": (
    "Ash Thorn Wick Hal Marl Bram Fen Cold Har Stan Oak Wyn",
    "er ing en s a",
    "ley ford combe ham worth stead bury den mere low wick",
  ),
  "germanic": (
    "Wald Eber Stein Grau Lind Rot Hoch Kalt Brun Birk Falk Eis",
    "en er el s",
    "bach berg hausen tal feld mühl brück au ingen hof",
  ),
}
_ORDINALS = "First Second Third Fourth Fifth Seventh Ninth".split()


class NameMaker:
  """Makes names in one or two styles, none of them twice.

  Makers that share a set `used` give no name that another of them gave.
  """

  def __init__(
    self,
    phrases: Phrases,
    rng: np.random.Generator,
    used: set[str] | None = None,
  ):
    self._phrases, self._rng = phrases, rng
    chosen = rng.choice(list(STYLES), 2, replace=False)
    self._styles = [str(style) for style in chosen]
    self._used = set() if used is None else used

  def fill(self, pattern: str) -> str:
    """Return a name of a pattern such as "the {adjective} Lantern"."""
    rng, phrases = self._rng, self._phrases
    for attempt in itertools.count():
      name = pattern.format(
        root=self._root(),
        place=self._root(),
        person=self._root(),
        first=self._root(first=True),
        full_name=f"{self._root(first=True)} {self._root()}",
        adjective=str(rng.choice(phrases.adjectives)),
        noun=str(rng.choice(phrases.nouns)),
        ordinal=str(rng.choice(_ORDINALS)),
        number=str(rng.integers(2, 90)),
      )
      # Tables leave articles out.
      bare = name.removeprefix("the ")
      if bare not in self._used:
        self._used.add(bare)
        return name
      # A pattern with few names is exhausted by now.
      if attempt > 20:
        pattern = f"{pattern} of {{root}}"

  def _root(self, first: bool = False) -> str:
    rng = self._rng
    style = self._styles[int(rng.random() < 0.3)]
    starts, middles, ends = (part.split() for part in STYLES[style])
    pieces = [str(rng.choice(starts))]
    # First names are shorter.
    if rng.random() < (0.15 if first else 0.4):
      pieces.append(str(rng.choice(middles)))
    return "".join([*pieces, str(rng.choice(ends))])
