import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


COMMAND = '''
"""A command, as small as they get.

  python command.py --config=config.py
"""
import sys
import jax
from absl import flags
from ml_collections import config_flags
from r1router_jax import commands, parallel

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where things are written.")
flags.mark_flag_as_required("config")


def main(argv):
  config = _CONFIG.value
  if config.do == "mesh":
    parallel.make_mesh(data=config.seed)
  if config.do == "theirs":
    import numpy as np
    np.zeros(3).reshape(2)
  if config.do == "bug":
    raise KeyError("a fault of ours")
  if config.do == "open":
    open(_WORKDIR.value)
  if config.do == "interrupt":
    raise KeyboardInterrupt
  if config.do == "exit":
    sys.exit(42)
  jax.devices()
  print("seed", config.seed, "of", config.step_grpo.group_size)


if __name__ == "__main__":
  commands.run(main)
'''


CONFIG = """
import ml_collections as mlc


def get_config(variant="tiny"):
  if variant not in ("tiny", "7b"):
    raise ValueError(f"There is no variant {variant!r}; take tiny or 7b.")
  c = mlc.ConfigDict()
  c.seed = 0
  c.do = ""
  c.optim = dict(lr=1.0)
  c.step_grpo = dict(group_size=5)
  return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("commands")
  (folder / "command.py").write_text(COMMAND)
  (folder / "config.py").write_text(CONFIG)
  (folder / "broken.py").write_text("def get_config():\n  return {}.lr\n")
  return folder


def run(folder, *args, **env):
  done = subprocess.run(
    [sys.executable, "command.py", *args],
    cwd=folder,
    text=True,
    timeout=60,
    capture_output=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
  )
  return done.returncode, done.stdout, done.stderr


def test_runs_with_what_is_asked(folder):
  code, out, err = run(
    folder,
    "--config=config.py:7b",
    "--config.seed=3",
    "--workdir=x",
    "--config.step_grpo.group_size",
    "4",
  )
  assert (code, out, err) == (0, "seed 3 of 4\n", "")


@pytest.mark.parametrize(
  "args, said",
  [
    (
      "--config=config.py --config.sed=3",
      "--config.sed: config.py has no such key. Did you mean --config.seed?",
    ),
    (
      "--config=config.py --config.step_grpo.grup_size=3",
      "Did you mean --config.step_grpo.group_size?",
    ),
    (
      "--config config.py:7b --noconfig.lr",
      "--config.lr: config.py has no such key. Did you mean --config.optim.lr?",
    ),
    (
      "--config=config.py --config.seed.x=4",
      "--config.seed.x: config.py has no such key.",
    ),
    ("--config=config.py --config.seed=abc", "--config.seed=abc"),
    ("--config=config.py:3b", "no variant '3b'; take tiny or 7b."),
    (
      "--config=konfig.py --config.seed=1",
      "no file konfig.py. Did you mean config.py?",
    ),
    ("--config=config.py --wrkdir=x", "Did you mean: workdir"),
    ("--config=config.py workdir=x", "What is 'workdir=x'?"),
    ("--workdir=x", "--config must have a value"),
    (
      "--config=config.py --config.do=mesh --config.seed=3",
      "config.mesh {'data': 3} does not tile",
    ),
    ("--config=config.py --config.do=open --workdir=/not/there", "/not/there"),
  ],
)
def test_one_line_for_the_user(folder, args, said):
  code, out, err = run(folder, *args.split())
  assert code == 2 and not out
  assert err.startswith("ERROR: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
  "do, said", [("theirs", "cannot reshape"), ("bug", "a fault of ours")]
)
def test_a_fault_of_ours_has_its_traceback(folder, do, said):
  code, _, err = run(folder, "--config=config.py", f"--config.do={do}")
  assert code == 1 and "Traceback" in err and said in err and "main" in err


def test_a_fault_of_the_config_has_its_traceback(folder):
  code, _, err = run(folder, "--config=broken.py")
  assert code == 1 and "broken.py" in err and "Traceback" in err


def test_verbosity_shows_every_traceback(folder):
  code, _, err = run(
    folder,
    "--config=config.py",
    "--config.do=mesh",
    "--verbosity=1",
    "--config.seed=3",
  )
  assert code == 2 and "Traceback" in err
  assert "\nERROR: config.mesh" in err


@pytest.mark.parametrize("do, code", [("interrupt", 130), ("exit", 42)])
def test_exit_codes(folder, do, code):
  found, _, err = run(folder, "--config=config.py", f"--config.do={do}")
  assert found == code and "Traceback" not in err


def test_help_is_no_failure(folder):
  code, out, _ = run(folder, "--help")
  assert code == 0 and "as small as they get" in out and "--workdir" in out


def test_a_failing_process_takes_the_others_with_it(folder):
  """Without `os._exit` the second would wait for minutes in its collective."""
  script = folder / "pair.py"
  script.write_text("""
import jax
import numpy as np
from jax.experimental import multihost_utils
from r1router_jax import commands, pods

def main(argv):
  pods.join_pod()
  multihost_utils.process_allgather(np.ones(1))
  if jax.process_index() == 0:
    raise KeyError("the culprit")
  multihost_utils.process_allgather(np.ones(1))

commands.run(main)
""")
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env.update(
    PYTHONPATH=str(ROOT),
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="",
    JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
    JAX_NUM_PROCESSES="2",
  )
  logs = [folder / f"pair{n}.log" for n in range(2)]
  children = [
    subprocess.Popen(
      [sys.executable, script],
      env=env | {"JAX_PROCESS_ID": str(n)},
      stdout=log.open("w"),
      stderr=subprocess.STDOUT,
    )
    for n, log in enumerate(logs)
  ]
  try:
    codes = [child.wait(timeout=30) for child in children]
  finally:
    for child in children:
      child.kill()
  assert codes[0] == 1 and codes[1] != 0
  assert "the culprit" in logs[0].read_text()
