"""Runs small commands, and the real ones, as a user does."""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from tests import two_processes

ROOT = pathlib.Path(__file__).parents[2]


# A command whose config says how it should fail.
COMMAND = '''
"""Do little, as a command.

  python command.py --config=config.py
"""
import os
import resource
import sys
from absl import flags
from etils import epy
from ml_collections import config_flags
from r1router_jax.common import cli
with epy.lazy_imports():
  import jax
  from r1router_jax.parallel import mesh

_CONFIG = config_flags.DEFINE_config_file("config", None, "The run.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Where things are written.")
flags.mark_flag_as_required("config")


def main(argv):
  config = _CONFIG.value
  if config.do == "mesh":
    mesh.make_mesh(data=config.seed)
  if config.do == "library":
    import numpy as np
    np.zeros(3).reshape(2)
  if config.do == "bug":
    raise KeyError("a bug")
  if config.do == "open":
    open(_WORKDIR.value)
  if config.do == "write":
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, -1))
    with open(_WORKDIR.value, "w") as file:
      file.write("x" * 99)
  if config.do == "fail":
    raise OSError(config.seed, os.strerror(config.seed), _WORKDIR.value)
  if config.do == "interrupt":
    raise KeyboardInterrupt
  if config.do == "exit":
    sys.exit(42)
  jax.devices()
  print("seed", config.seed, "of", config.step_grpo.group_size, "\u2713")


if __name__ == "__main__":
  cli.run(main)
'''


# Its config file.
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
  # A config file with a bug of its own.
  (folder / "broken.py").write_text("def get_config():\n  return {}.lr\n")
  return folder


def run_command(folder, *args, **env):
  done = subprocess.run(
    [sys.executable, "command.py", *args],
    cwd=folder,
    text=True,
    timeout=60,
    capture_output=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
  )
  return done.returncode, done.stdout, done.stderr


def test_config_and_flags_reach_the_command(folder):
  code, out, err = run_command(
    folder,
    "--config=config.py:7b",
    "--config.seed=3",
    "--workdir=x",
    "--config.step_grpo.group_size",
    "4",
    PYTHONIOENCODING="ascii",
  )
  # A terminal that is not UTF-8 shows "?" for what it cannot show.
  assert (code, out, err) == (0, "seed 3 of 4 ?\n", "")


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
def test_user_error_is_one_line(folder, args, said):
  # Usage errors print nothing on stdout.
  code, out, err = run_command(folder, *args.split())
  assert code == 2 and not out
  assert err.startswith("ERROR: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
  "args, said",
  [
    ("--config.do=write --workdir=/dev/full", "No space left on device"),
    ("--config.do=write --workdir=large", "File too large"),
    (f"--config.do=fail --config.seed={errno.EROFS}", "Read-only file system"),
    (f"--config.do=fail --config.seed={errno.EDQUOT}", "quota exceeded"),
  ],
)
def test_disk_that_takes_nothing_is_one_line(folder, args, said):
  code, out, err = run_command(folder, "--config=config.py", *args.split())
  assert code == 2 and not out
  assert err.startswith("ERROR: ") and err.count("\n") == 1 and said in err
  assert err.endswith(". Free it, or write elsewhere.\n")


@pytest.mark.parametrize(
  "do, said", [("library", "cannot reshape"), ("bug", "a bug")]
)
def test_bug_has_its_traceback(folder, do, said):
  code, _, err = run_command(folder, "--config=config.py", f"--config.do={do}")
  assert code == 1 and "Traceback" in err and said in err and "main" in err


def test_broken_config_file_has_its_traceback(folder):
  code, _, err = run_command(folder, "--config=broken.py")
  assert code == 1 and "broken.py" in err and "Traceback" in err


def test_verbosity_shows_every_traceback(folder):
  code, _, err = run_command(
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
  found, _, err = run_command(folder, "--config=config.py", f"--config.do={do}")
  assert found == code and "Traceback" not in err


def test_help_is_a_success(folder):
  code, out, _ = run_command(folder, "--help")
  assert code == 0 and "Do little" in out and "--workdir" in out


# Process 0 fails while process 1 waits for it in a collective.
PAIR = """
import jax
import numpy as np
from jax.experimental import multihost_utils
from r1router_jax.common import cli
from r1router_jax.parallel import multihost

def main(argv):
  multihost.initialize_distributed()
  multihost_utils.process_allgather(np.ones(1))
  if jax.process_index() == 0:
    raise KeyError("the first to fail")
  multihost_utils.process_allgather(np.ones(1))

cli.run(main)
"""


def test_failing_process_ends_the_other_processes(tmp_path):
  """Without `os._exit` the second would wait for minutes in its collective."""
  first, _ = two_processes.run_two_processes(
    PAIR, tmp_path, timeout=60, fail=True
  )
  assert "the first to fail" in first


COMMANDS = "ask build_kb convert eval serve_kb synthesize train train_compile"
HEAVY = "jax flax optax orbax tensorflow tensorflow_datasets torch transformers"

# Runs a module as `python -m` does, and says at the end what it imported.
RUN_MODULE = f"""
import atexit, runpy, sys
module, *args = sys.argv[1:]
heavy = {HEAVY.split()}
atexit.register(lambda: print("HEAVY", [m for m in heavy if m in sys.modules]))
atexit.register(lambda: print("MODULES", *sys.modules))
sys.argv = [module, *args]
runpy.run_module("r1router_jax." + module, run_name="__main__", alter_sys=True)
"""


def run_light(module, *args, cwd=None):
  """Runs a command that must end before it imports anything heavy."""
  done = subprocess.run(
    [sys.executable, "-c", RUN_MODULE, module, *args],
    cwd=cwd,
    text=True,
    timeout=60,
    capture_output=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  # The last line of output names the modules that were imported.
  assert "HEAVY []" in done.stdout, done.stdout.splitlines()[-1]
  return done


@pytest.mark.parametrize("module", COMMANDS.split())
def test_help_is_light(module):
  done = run_light(module, "--help")
  assert done.returncode == 0 and f"r1router_jax.{module}" in done.stdout


@pytest.mark.parametrize("module", COMMANDS.split())
def test_unknown_flag_is_answered_at_once(module):
  done = run_light(module, "--no_such_flag")
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "no_such_flag" in done.stderr


BUILD_KB = "build_kb --kb_dir=kb"
TRAIN = f"train --workdir=run --config={ROOT}/configs/sft.py:smoke"


@pytest.mark.parametrize(
  "command, said",
  [
    ("ask", "There is no question."),
    ("ask --question=Who? --image=no.png", "--image=no.png does not exist"),
    ("ask --question=Who? --kb_dir=nowhere", "nowhere holds no finished"),
    ("ask --question=Who? --policy=nowhere", "There is no folder nowhere."),
    ("ask --question=Who? --method=guess", "one of <r1_router|few_shot"),
    ("ask --question=Who? --method=oracle_route", "one of <r1_router|few_shot"),
    ("eval", "--workdir must have a value"),
    ("eval --workdir=out --kb_dir=nowhere", "nowhere holds no finished"),
    ("eval --workdir=out --policy=a=no/where/b", "no folder no/where/b"),
    ("eval --workdir=out --policy=a=x,a=y", "each name once"),
    ("eval --workdir=out --policy=", "names no policy"),
    ("eval --workdir=out --method=direct,guess", "'guess' is no method"),
    ("eval --workdir=out --method=", "'' is no method"),
    ("eval --workdir=out --samples=2", "at temperature 0 would all be"),
    ("eval --workdir=out --samples=0", "--samples"),
    ("synthesize", "--workdir must have a value"),
    ("synthesize --workdir=out --kb_dir=nowhere", "nowhere holds no"),
    ("synthesize --workdir=out --policy=nowhere", "no folder nowhere."),
    ("synthesize --workdir=out --top_p=0", "--top_p"),
    ("synthesize --workdir=out --temperature=-1", "--temperature"),
    ("synthesize --workdir=out --temperature=inf", "--temperature"),
    ("synthesize --workdir=out --top_k=2147483648", "--top_k"),
    ("eval --workdir=out --seed=4294967296", "--seed"),
    (f"{BUILD_KB} --kind=web", "--kind=web is no knowledge base"),
    (f"{BUILD_KB} --kind=text --source=no.jsonl", "no.jsonl does not exist"),
    (f"{BUILD_KB} --source=rows.jsonl", "can feed one knowledge base"),
    (f"{BUILD_KB} --source=mbeir:pool.jsonl", "needs --images"),
    (f"{BUILD_KB} --worker=3/2", "--worker=3/2"),
    (f"{BUILD_KB} --kind=text --embedder=clip", "No embedder 'clip'"),
    *(
      (f"{BUILD_KB} --kind=text --embedder={name}", "give their folder, or a")
      for name in ("bge_m3", "open_wikitable", "openai", "tei_raw", "e5", "hf")
    ),
    (f"{BUILD_KB} --index=faiss", "No index 'faiss'"),
    (f"{TRAIN} --config.total_stepz=1", "total_steps"),
    (f"{TRAIN} --config.policy.start_from=nowhere", "no folder nowhere"),
    (f"{TRAIN} --config.sft.packed_length=96", "packed_length wants gold"),
  ],
)
def test_wrong_options_are_answered_at_once(tmp_path, command, said):
  done = run_light(*command.split(), cwd=tmp_path)
  assert done.returncode == 2 and said in done.stderr
  assert done.stderr.startswith("ERROR: ") and done.stderr.count("\n") == 1
  # Nothing was written or unpacked yet.
  assert not list(tmp_path.iterdir())


def test_ask_imports_neither_trainer_nor_evaluation():
  done = run_light("ask", "--help")
  # `RUN_MODULE` prints the names of all modules at its end.
  loaded = done.stdout.split("MODULES ")[1].split()
  rooms = {name.split(".")[1] for name in loaded if "r1router_jax." in name}
  assert rooms and not rooms & {"training", "evaluation", "models"}


def test_jax_flags_are_known_when_they_are_given(folder):
  code, out, err = run_command(
    folder, "--config=config.py", "--jax_debug_nans=true"
  )
  assert (code, err) == (0, "") and out.startswith("seed 0 of 5")
