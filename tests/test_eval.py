import pytest

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
