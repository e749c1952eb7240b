"""Schemas: what does not fit is one line with the field, found and wanted."""

import os
from typing import Annotated

import msgspec
import pytest

from r1router_jax.common import jsonl, schema
from r1router_jax.common.errors import UserError


class Part(msgspec.Struct):
  rows: schema.PositiveInt


class Record(msgspec.Struct, forbid_unknown_fields=True):
  kind: schema.one_of("text", "image")
  lengths: Annotated[list[schema.int_range(1, 5)], msgspec.Meta(min_length=1)]
  share: schema.Finite = 0.5
  parts: list[Part] = []
  scalars: dict[str, schema.Finite | None] = {}

  def __post_init__(self):
    if self.lengths != sorted(self.lengths):
      raise ValueError(f"lengths is {self.lengths}, wanted ascending")


GOOD = dict(kind="text", lengths=[1, 2])


def parse(tree):
  return schema.convert(tree, Record)


def test_good_record_is_read():
  tree = GOOD | dict(share=1, parts=[dict(rows=3, more="kept out")])
  assert parse(tree) == Record("text", [1, 2], 1.0, [Part(3)])


@pytest.mark.parametrize(
  "change, says",
  [
    (dict(kind="table"), "kind is 'table': take one of text, image"),
    (dict(kind="text\n"), "kind is 'text\\n': take one of text, image"),
    (dict(kind=["text"]), "kind: expected `str`, got `array`"),
    (dict(kind=None), "kind is None: expected `str`, got `null`"),
    (dict(lengths=[]), "lengths: expected `array` of length >= 1"),
    (dict(lengths=[2, 9]), "lengths[1] is 9: expected `int` <= 5"),
    (dict(lengths=[2, 1]), "lengths is [2, 1], wanted ascending"),
    (dict(lengths=[True]), "lengths[0] is True: expected `int`, got `bool`"),
    (dict(lengths=[10**400]), f"lengths[0] is {10**79}: expected `int` <= 5"),
    (dict(share=float("nan")), "share is nan: expected `float` >= -1.79"),
    (dict(share=float("inf")), "share is inf: expected `float` <= 1.79"),
    (dict(share=10**400), f"share is {10**79}: number out of range"),
    (dict(parts=[{}]), "parts[0].rows is missing"),
    (dict(parts=[dict(rows=2**63)]), "rows is 9223372036854775808: expected"),
    (
      dict(scalars=dict(loss="x")),
      "scalars[...]: expected `float | null`",
    ),
    (dict(colour="red"), "colour is unknown"),
  ],
)
def test_what_does_not_fit_is_named(change, says):
  with pytest.raises(UserError) as caught:
    parse(GOOD | change)
  assert str(caught.value).startswith(says) or says in str(caught.value)
  with pytest.raises(UserError, match="^config"):
    schema.convert(GOOD | change, Record, "config")


@pytest.mark.parametrize(
  "data, says",
  [
    (b"", "not JSON (Expecting value"),
    (b"{", "not JSON"),
    (b"[]", "expected `object`, got `array`"),
    (b"5", "expected `object`, got `int`"),
    (b"\0" * 50, "not JSON"),
    (b"\xff\xfe{", "not UTF-8 at byte 0"),
    ('{"kind": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"a":' * 200_000, "nested too deeply"),
    (b'{"share": NaN}', "NaN is not JSON"),
    (b'{"share": 1e999}', "the number 1e999 is too large"),
    (b'{"share": ' + b"1" * 5000 + b"}", "not JSON (Exceeds the limit"),
    (b'{"kind": "text", "kind": "image"}', "the key 'kind' occurs twice"),
    (b" " * schema.MAX_BYTES + b"{}", "it has more than 1,048,576 bytes"),
    (b'{"kind": "text"}', "lengths is missing"),
  ],
)
def test_damaged_file_is_one_line_with_the_cure(tmp_path, data, says):
  path = tmp_path / "a.json"
  path.write_bytes(data)
  with pytest.raises(UserError) as caught:
    schema.read_json(path, parse, "Copy it again.")
  message = str(caught.value)
  assert message.startswith(f"{path}: {says}")
  assert message.endswith(".  Copy it again.") and "\n" not in message


def test_what_is_no_file_is_named(tmp_path):
  os.mkfifo(tmp_path / "pipe")  # Nobody writes to it.
  places = {"no": "No such file", ".": "Is a directory", "pipe": "not JSON"}
  for name, says in places.items():
    path = tmp_path / name
    with pytest.raises(UserError) as it:
      schema.read_json(path, parse, "Copy it again.")
    assert str(it.value).startswith(f"{path}: {says}")


ROW = b'{"id": "a", "tokens": 3}'
# What a line may be damaged to, and what is said of the first one.
LINES = {
  b"[1, 2]": "expected `object`, got `array`",
  b"\xff\xfe\xfd": "not UTF-8 at byte 0",
  b'{"id": "a", "tok': "not JSON",
  b"[" * 100_000: "nested too deeply",
  b'{"id": "a", "tokens": "<script>"}': "tokens is '<script>': expected `int`",
  b'{"id": "a", "tokens": -1}': "tokens is -1: expected `int` >= 0",
  b'{"id": "a", "tokens": NaN}': "tokens is nan: expected `int`, got `float`",
  b'{"id": "a", "tokens": 1' + b"0" * 400 + b"}": "tokens is 10000",
  b'{"id": "a", "tokens": 1' + b"0" * 5000 + b"}": "not JSON",
  b'{"id": ["a"], "tokens": 3}': "id: expected `str`, got `array`",
  b'{"tokens": 3}': "id is missing",
  bytes(set(range(256)) - {10}): "not UTF-8",
}


class Row(msgspec.Struct):
  id: str
  tokens: schema.Count


@pytest.mark.parametrize("number", range(len(LINES)))
def test_damaged_line_of_a_journal_is_named(tmp_path, caplog, number):
  line, says = list(LINES.items())[number]
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b"\n".join([ROW, line, ROW]) + b"\n")
  found = jsonl.read_rows(path, Row, parse_constant=float)
  assert found == [dict(id="a", tokens=3)] * 2
  (message,) = caplog.messages
  assert message.startswith(f"{path}: 1 damaged lines (2) ") and says in message


def test_any_changed_bit_of_an_appended_line_is_noticed(tmp_path):
  path, row = tmp_path / "rows.jsonl", dict(id="é", tokens=3, more=[0.1, None])
  jsonl.append_rows(path, [row])
  good = path.read_bytes()
  assert jsonl.read_rows(path, Row) == [row]
  for bit in range(8 * len(good) - 8):
    bad = bytearray(good)
    bad[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bad)
    # Either the row is left out, or the bit was in the name of the checksum.
    found = jsonl.read_rows(path, Row)
    assert not found or found[0].items() >= row.items()


def test_rows_of_equal_runs_are_equal_but_for_their_seconds(tmp_path):
  paths = [tmp_path / name for name in "ab"]
  for path, seconds in zip(paths, (0.5, 0.75), strict=True):
    jsonl.append_rows(path, [dict(id="a", tokens=3, seconds=seconds)])
  lines = [path.read_text().replace("0.75", "0.5") for path in paths]
  assert lines[0] == lines[1]
