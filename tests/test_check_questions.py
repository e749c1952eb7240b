"""Tests of the command `check_questions`."""

import dataclasses
import json
import re

import pytest
from absl.testing import flagsaver
from PIL import Image

from r1router_jax import check_questions
from r1router_jax.common.errors import UserError
from r1router_jax.policy import policy
from tests import commands, tiny_policy

pytestmark = pytest.mark.usefixtures("parsed_flags")

CHAD = dict(question="What is the capital city of Chad?", answer="N'Djamena")


def write_rows(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def check(**values):
  # Other commands of this process may have given flags other defaults.
  values = dict(images="", policy="warm_start", kb_dir="") | values
  with flagsaver.flagsaver(**values):
    check_questions.main([])


def test_what_is_printed(tmp_path, capsys, kbs):
  Image.new("L", (84, 84)).save(tmp_path / "a.png")
  rows = [
    CHAD | dict(family="capital"),
    CHAD | dict(image="a.png", answer=["Nowhere"], hops=[]),
    CHAD | dict(question="Who? " * 400, answer="nobody here"),
    CHAD | dict(image="no.png"),
    dict(question="Who?"),
    dict(question="Why?"),
  ]
  path = write_rows(tmp_path / "shop.jsonl", *rows)
  check(data=path, kb_dir=str(kbs))
  shown = capsys.readouterr().out
  assert f"{path}: 6 rows, 3 can be used." in shown
  assert f'2 left out:\n  {path}:5: it has no "answer". Give' in shown
  assert f'1 left out:\n  {path}:4: "image" is' in shown
  assert "Families: shop 2, capital 1." in shown
  assert "With an image: 1.  With gold hops: 1." in shown
  # 4 tokens of "Who? " hold one word each; the first prompt of that is none.
  assert re.search(r"question +8 +8 +\d{3,} +\d{3,}\n", shown)
  assert re.search(r"first prompt +14 .*\n", shown)
  assert "1 unreadable:\n  shop/3: The plan prompt is" in shown
  # The small knowledge bases have no passage of these.
  assert re.search(r"text +40 +[01]\n", shown)
  assert "shop/2: 'Nowhere'." in shown


def test_strict_makes_a_row_that_is_left_out_an_error(tmp_path):
  path = write_rows(tmp_path / "a.jsonl", CHAD, {})
  check(data=path)
  with pytest.raises(UserError, match="would leave out 1 of 2 rows"):
    check(data=path, strict=True)
  check(data=write_rows(tmp_path / "a.jsonl", CHAD), strict=True)
  # Nothing to learn from is one without it.
  with pytest.raises(UserError, match="would leave out 1 of 1 rows"):
    check(data=write_rows(tmp_path / "a.jsonl", {}))


def test_question_with_an_image_is_not_for_a_policy_of_texts(tmp_path, capsys):
  folder = tmp_path / "policy"
  config = tiny_policy.POLICY_CONFIG
  model = dataclasses.replace(config.model, vision=None)
  config = dataclasses.replace(config, model=model)
  params = tiny_policy.params(config.model)
  policy.Policy(config, tiny_policy.TOKENIZER, params).save(folder)
  Image.new("L", (84, 84)).save(tmp_path / "a.png")
  path = write_rows(tmp_path / "a.jsonl", CHAD | dict(image="a.png"), CHAD)
  check(data=path, policy=str(folder))
  assert "this policy reads texts alone" in capsys.readouterr().out


@pytest.mark.parametrize(
  "flags, message",
  [
    (dict(data="no.csv"), "no.csv: there is no such file"),
    (dict(policy="no/such/policy"), "There is no folder"),
    (dict(policy="openai:http://x/v1#m"), "Name a folder, or warm_start"),
    (dict(kb_dir="/nowhere"), "holds no finished knowledge base"),
    (
      dict(kb_dir="text=http://a:1,image=http://a:2,table=http://a:3"),
      "in place of http://a:1",
    ),
  ],
)
def test_wrong_flags_are_told_before_the_file_is_read(tmp_path, flags, message):
  bad = tmp_path / "a.csv"
  bad.write_text("no,columns,of,questions\n")
  with pytest.raises((UserError, FileNotFoundError), match=message):
    check(**dict(data=str(bad)) | flags)


def test_exit_code_of_a_bad_file(tmp_path):
  (tmp_path / "a.csv").write_text("frage;answer\nQ?;A\n")
  done = commands.run_command("check_questions", f"--data={tmp_path}/a.csv")
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.strip().splitlines()
  assert line.endswith("rename or remove the others.") and "a.csv:1: " in line
