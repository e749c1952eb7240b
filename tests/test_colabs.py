"""The notebooks open, their code compiles, and their commands exist."""

import ast
import importlib.util
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

NOTEBOOKS = sorted(ROOT.glob("colabs/*.ipynb"))


def code_cells(path: pathlib.Path) -> list[str]:
  cells = json.loads(path.read_text())["cells"]
  return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_without_output(path):
  notebook = json.loads(path.read_text())
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
  for source in code_cells(path):
    compile(source, path.name, "exec")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_named_modules_and_configs_exist(path):
  for source in code_cells(path):
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value.startswith("r1router_jax."):
          assert importlib.util.find_spec(node.value), node.value
        if node.value.startswith("--config="):
          config = node.value.removeprefix("--config=").split(":")[0]
          assert (ROOT / config).exists(), config
