import json

import pytest
from absl.testing import flagsaver

from r1router_jax import eval


def test_names_of_policies():
  # A folder without a name has that of its run.
  pairs = ["a=x/policy", "runs/sft/policy", "warm_start"]
  assert eval._split_names(pairs, "policy") == dict(
    a="x/policy", sft="runs/sft/policy", warm_start="warm_start"
  )


@pytest.mark.parametrize("pairs", [["a="], ["a=x", "a=y"]])
def test_missing_folder_or_repeated_name_is_rejected(pairs):
  """Other wrong options are those of tests/common/test_cli.py."""
  with pytest.raises(ValueError, match="--policy="):
    eval._split_names(pairs, "policy")


def test_gold_routes_are_asked_for_before_anything_runs(
  tmp_path, parsed_flags, monkeypatch
):
  file = tmp_path / "own.jsonl"
  rows = dict(question="a", answer="b", hops=[]), dict(question="c", answer="d")
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  retrieval = "r1router_jax.retrieval"
  monkeypatch.setattr(f"{retrieval}.kb_meta.check_kb_dir", lambda place: None)
  monkeypatch.setattr(f"{retrieval}.retriever.open_kbs", pytest.fail)
  flags = dict(workdir=str(tmp_path / "run"), data=str(file))
  flags |= dict(benchmark=["jsonl"], method=["direct", "oracle_route"])
  flags |= dict(policy=["warm_start"])  # Other commands' is no list.
  with flagsaver.flagsaver(**flags, tfds_dir=str(tmp_path / "tfds")):
    with pytest.raises(ValueError, match="'jsonl/1' has no gold trace"):
      eval.main([])


def test_questions_of_some_families_are_asked(parsed_flags):
  wanted = ["text_text_2hop", "map_text_2hop"]
  options = dict(benchmark=["georouter"], split="test", questions=0, data="")
  with flagsaver.flagsaver(**options, families=wanted):
    questions = eval._load_questions()
  assert len(questions) == 120 and {q.family for q in questions} == {*wanted}
  with flagsaver.flagsaver(**options, families=["x"]):
    with pytest.raises(ValueError, match="--families: georouter, test, has no"):
      eval._load_questions()
