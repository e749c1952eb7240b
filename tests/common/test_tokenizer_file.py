"""A tokenizer.json from elsewhere: refused in one line, or read in full."""

import copy
import json
import pathlib

import pytest

import r1router_jax
from r1router_jax.common import tokenizer_file
from r1router_jax.common.errors import UserError

PATH = pathlib.Path(
  r1router_jax.__path__[0], "data/files/georouter/tokenizer.json"
)
TREE = json.loads(PATH.read_text())
VOCABULARY = TREE["model"]["vocab"]
TEXT = "Who wrote it? é"
# A token that no merge is made of, and that is merged into no other.
LAST = max(VOCABULARY, key=VOCABULARY.get)


def without(name):
  return {key: value for key, value in TREE.items() if key != name}


def with_field(value, *path):
  tree = copy.deepcopy(TREE)
  place = tree
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  return tree


def read(tmp_path, tree):
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(tree))
  return tokenizer_file.read_tokenizer(path)[1]


CUTTING = dict(direction="Right", max_length=4, strategy="LongestFirst")
CUTTING |= dict(stride=0)
FILLING = dict(strategy=dict(Fixed=10**9), direction="Right", pad_id=0)
FILLING |= dict(pad_to_multiple_of=None, pad_type_id=0, pad_token="x")


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(truncation=CUTTING),
    dict(padding=FILLING),
    dict(model=TREE["model"] | dict(dropout=0.5)),
  ],
)
def test_texts_are_neither_cut_nor_filled_nor_varied(tmp_path, changes):
  wanted = read(tmp_path, TREE).encode(TEXT).ids
  assert len(wanted) > 4
  assert read(tmp_path, TREE | changes).encode(TEXT).ids == wanted


@pytest.mark.parametrize(
  "tree, says",
  [
    (without("added_tokens"), "added_tokens is missing"),
    (without("model"), "model is missing"),
    ([], "expected `object`, got `array`"),
    (with_field({}, "model", "vocab"), "no tokenizer (Token"),
    (with_field([["qq", "zz"]], "model", "merges"), "no tokenizer (Token `qq"),
    (with_field("9.0", "version"), "no tokenizer (Unknown tokenizer version"),
    (with_field(-1, "added_tokens", 0, "id"), "added_tokens[0].id is -1"),
    (with_field(2**31, "added_tokens", 0, "id"), "added_tokens[0].id is 2147"),
    (with_field("3", "added_tokens", 0, "id"), "added_tokens[0].id is '3'"),
    (with_field("", "added_tokens", 0, "content"), "tokens[0].content is ''"),
    (with_field(None, "added_tokens", 0, "special"), "[0].special is None"),
    (with_field("##", "model", "continuing_subword_prefix"), "beside merges"),
    (with_field(-1, "model", "vocab", LAST), "no tokenizer (invalid value"),
  ],
)
def test_damaged_file_is_refused_in_a_line(tmp_path, tree, says):
  with pytest.raises(UserError) as caught:
    read(tmp_path, tree)
  message = str(caught.value)
  assert message.startswith(f"{tmp_path / 'tokenizer.json'}: ")
  assert says in message and "\n" not in message
  assert message.endswith("Copy that of the model again.")
