r"""Writes the example of docs/training.md: what the user of a shop would bring.

  python -m tools.shop_world --folder=runs/shop

The folder then holds questions with answers and nothing else, and three corpora
in which the answers stand:

  questions.csv  200 questions about 60 products, three in five with a picture
  test.csv       300 questions about 60 other products
  photos/        the pictures of both: logos as a customer shows them
  text.csv       who makes a product, and what of
  logos/         the logo of each product, with its name in the caption
  tables.jsonl   prices and stocks

A question about a picture needs two searches, of the logo's product and then of
what is asked for.  Names are made of words that the tokenizer of the package's
tiny policy knows, so that this policy can spell them.
"""

import csv
import itertools
import json
import pathlib
import random
from collections.abc import Sequence
from typing import NamedTuple

import PIL.Image
import PIL.ImageDraw
from absl import flags

from r1router_jax.common import cli

_FOLDER = flags.DEFINE_string("folder", "runs/shop", "Folder to write to.")

# A product's name is a word of each; so is its maker's.
_NAMES = (
  "Black Green Red Great Northern Southern Eastern Western Atlantic Pacific "
  "New Christmas",
  "Valley Sea Peak Hill Mountain Island Bay Ocean City Liberty",
)
_MAKERS = (
  "George Helena Catherine Tom Ben Sam Christian Lucia Vincent Jordan Pierre "
  "Kitts",
  "Marshall Martin Solomon Christopher Leone Douglas Louis Norfolk Turks "
  "Caicos",
)
_MATERIALS = "cotton copper gold iron rubber wood wool steel glass leather "
_MATERIALS += "paper coral"

# The facts that each knowledge base holds.
_FACTS = dict(text=("maker", "material"), table=("price", "stock"))

# Wordings: FACT is what is asked for, {} the product.
_ASK = (
  "What is the FACT of {}?",
  "Tell me the FACT of {}.",
  "I would like to know the FACT of {}.",
  "Give the FACT of {}.",
)
_PICTURED = (
  "the product in the image",
  "the item in the image",
  "the product with this logo",
  "the item with this logo",
)
_WHICH = (
  "Which product does this logo belong to?",
  "Name the product whose logo is shown.",
)
# What a question has to be looked up in, one after the other.
_KINDS = (("text",), ("table",), ("image",), ("image", "text"))
_KINDS += (("image", "table"),)

_TRAIN_PRODUCTS, _TRAIN_QUESTIONS, _TEST_QUESTIONS = 60, 200, 300

_SIDE = 64  # Pixels.
_GRAY = (128, 128, 128)
_COLORS = dict(
  black=(20, 20, 20),
  white=(250, 250, 250),
  red=(205, 30, 40),
  green=(20, 140, 70),
  blue=(30, 60, 170),
  yellow=(250, 205, 30),
)
_SHAPES = ("circle", "cross", "triangle", "band")


class Product(NamedTuple):
  """A product; its logo is a ground, a shape and the colour of that."""

  name: str
  facts: dict[str, str]
  logo: tuple[str, str, str]

  @property
  def file_name(self) -> str:
    """Return the name of its pictures, without an ending."""
    return self.name.lower().replace(" ", "-")


def write_world(folder: str) -> None:
  """Write all files below `folder`, the same ones each time."""
  root, rng = pathlib.Path(folder), random.Random(0)
  products = draw_products(rng)
  # 1. The corpora, which know all products.
  _write_pictures(root, products)
  passages, tables = [], []
  for product in products:
    passages += [_text_row(product, fact) for fact in _FACTS["text"]]
    tables += [_table_row(product, fact) for fact in _FACTS["table"]]
  _write_csv(root / "text.csv", passages)
  lines = [json.dumps(table) + "\n" for table in tables]
  (root / "tables.jsonl").write_text("".join(lines))
  # 2. The questions.  No product is asked for in both files.
  train, test = products[:_TRAIN_PRODUCTS], products[_TRAIN_PRODUCTS:]
  questions = draw_questions(train, _TRAIN_QUESTIONS, rng)
  _write_csv(root / "questions.csv", questions)
  questions = draw_questions(test, _TEST_QUESTIONS, rng)
  _write_csv(root / "test.csv", questions)


def draw_products(rng: random.Random) -> list[Product]:
  """Draw 120 products, each with a name, a maker and a logo of its own."""
  logos = [
    (ground, shape, color)
    for ground, shape, color in itertools.product(_COLORS, _SHAPES, _COLORS)
    if ground != color
  ]
  # Shuffled, so that any slice of the products has all colours and words.
  names, makers = _join_words(*_NAMES), _join_words(*_MAKERS)
  for each in (logos, names, makers):
    rng.shuffle(each)
  return [
    Product(name, _draw_facts(maker, rng), logo)
    for name, maker, logo in zip(names, makers, logos, strict=True)
  ]


def draw_questions(
  products: Sequence[Product], count: int, rng: random.Random
) -> list[dict[str, str]]:
  """Draw rows of a file of questions, no two of them equal, kind by kind."""
  rows, kinds = [], itertools.cycle(_KINDS)
  while len(rows) < count:
    kind = next(kinds)
    row = _draw_question(rng.choice(products), kind, rng)
    while row in rows:
      row = _draw_question(rng.choice(products), kind, rng)
    rows.append(row)
  return rows


def _join_words(first: str, second: str) -> list[str]:
  return [f"{x} {y}" for x in first.split() for y in second.split()]


def _draw_facts(maker: str, rng: random.Random) -> dict[str, str]:
  return dict(
    maker=maker,
    material=rng.choice(_MATERIALS.split()),
    price=f"{rng.uniform(2, 99):.1f}",
    stock=str(rng.randint(101, 999)),
  )


def _draw_question(
  product: Product, kind: Sequence[str], rng: random.Random
) -> dict[str, str]:
  """Draw a question of a kind about a product, and a wording."""
  has_image, kb = kind[0] == "image", kind[-1]
  if kb == "image":
    question, answer = rng.choice(_WHICH), product.name
  else:
    fact = rng.choice(_FACTS[kb])
    name = rng.choice(_PICTURED) if has_image else product.name
    question = rng.choice(_ASK).replace("FACT", fact).format(name)
    answer = product.facts[fact]
    # A second accepted answer, as a CSV file has it.
    answer += f"|{answer} dollars" if fact == "price" else ""
  image = f"photos/{product.file_name}.png" if has_image else ""
  return dict(question=question, answer=answer, image=image)


def _text_row(product: Product, fact: str) -> dict[str, str]:
  """Return a row of text.csv."""
  text = f"{product.name}. {fact.capitalize()}: {product.facts[fact]}."
  return dict(id=f"{product.file_name}/{fact}", text=text)


def _table_row(product: Product, fact: str) -> dict:
  """Return a row of tables.jsonl: a table of one fact of one product."""
  return dict(
    id=f"{product.file_name}/{fact}",
    title="Price list",
    section_title="Products",
    caption=f"{fact.capitalize()} of {product.name}",
    header=["Product", fact.capitalize()],
    rows=[[product.name, product.facts[fact]]],
  )


def _write_csv(path: pathlib.Path, rows: Sequence[dict[str, str]]) -> None:
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _write_pictures(root: pathlib.Path, products: Sequence[Product]) -> None:
  """Write logos/ with captions, and photos/, in which logos look different."""
  for name in ("logos", "photos"):
    (root / name).mkdir(parents=True, exist_ok=True)
  for product in products:
    ground, shape, color = product.logo
    logo, path = draw_logo(product.logo), root / "logos" / product.file_name
    logo.save(f"{path}.png")
    caption = f"{product.name}: a {color} {shape} on {ground}"
    path.with_suffix(".txt").write_text(caption)
    # A customer's photo is smaller, has an edge, and less contrast.
    photo = PIL.Image.new("RGB", (_SIDE, _SIDE), _GRAY)
    photo.paste(logo.resize((_SIDE - 12, _SIDE - 12)), (6, 6))
    photo = photo.point(lambda value: round(0.92 * value + 6))
    photo.save(root / "photos" / f"{product.file_name}.png")


def draw_logo(logo: tuple[str, str, str]) -> PIL.Image.Image:
  """Draw a shape on a ground."""
  ground, shape, color = logo
  picture = PIL.Image.new("RGB", (_SIDE, _SIDE), _COLORS[ground])
  draw, fill = PIL.ImageDraw.Draw(picture), _COLORS[color]
  if shape == "circle":
    draw.ellipse((16, 16, 48, 48), fill)
  elif shape == "cross":
    draw.rectangle((26, 8, 38, 56), fill)
    draw.rectangle((8, 26, 56, 38), fill)
  elif shape == "triangle":
    draw.polygon([(32, 8), (58, 56), (6, 56)], fill)
  else:
    draw.rectangle((0, 22, 64, 42), fill)
  return picture


def main(_) -> None:
  """Write the example to the folder of the flag."""
  write_world(_FOLDER.value)
  print(f"The shop is in {_FOLDER.value}.")


if __name__ == "__main__":
  cli.run(main)
