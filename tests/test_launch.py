"""The launch scripts, run for real around stand-ins for what they call.

The stand-ins write down their arguments, so that the tests see what arrives
after every shell in between.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

SCRIPTS = sorted(ROOT.glob("launch/*.sh")) + [ROOT / ".ci/run"]

HARD = ["--config.name=it's  $HOME", '--x="q" *', "--y=a\\b;`id`\nnext", "ünï"]


# Logs its arguments, then behaves enough like what it stands for.
STAND_IN = f"""#!{sys.executable}
import json, os, subprocess, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and args[:1] == ["-c"]:
  os.execv({sys.executable!r}, [{sys.executable!r}, *args])
with open(os.environ["CALLS"], "a") as f:
  f.write(json.dumps([name, *args]) + "\\n")
if name == "srun":
  sys.exit(subprocess.run(args[1:]).returncode)
sys.exit(os.environ.get("FAIL_ON", "no such word") in " ".join(args))
"""


@pytest.fixture
def stage(tmp_path):
  """A copy of the scripts, a virtual environment of stand-ins, and a log."""
  stage = tmp_path / "a house"  # With a space, as people have.
  shutil.copytree(ROOT / "launch", stage / "launch")
  (stage / "setup.py").write_text("")
  for folder in ("bin", ".venv/bin"):
    (stage / folder).mkdir(parents=True)
  for path in ("bin/gcloud", "bin/srun", ".venv/bin/python"):
    (stage / path).write_text(STAND_IN)
    (stage / path).chmod(0o755)
  return stage


def launch(stage, *command, cwd=None, **env):
  """Runs `bash *command`; its exit code, standard error, and the calls."""
  log = stage / "calls.jsonl"
  log.unlink(missing_ok=True)
  done = subprocess.run(
    ["bash", *map(str, command)],
    cwd=cwd or stage,
    capture_output=True,
    text=True,
    timeout=60,
    env=dict(
      PATH=f"{stage / 'bin'}:{os.environ['PATH']}",
      HOME=str(stage),
      CALLS=str(log),
      **env,
    ),
  )
  calls = (
    []
    if not log.exists()
    else [json.loads(line) for line in log.read_text().splitlines()]
  )
  return done.returncode, done.stdout + done.stderr, calls


def modules(calls):
  return [
    c[2].removeprefix("r1router_jax.")
    for c in calls
    if c[:2] == ["python", "-m"] and c[2] != "pip"
  ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script):
  subprocess.run(["bash", "-n", script], check=True)
  shellcheck = shutil.which(
    "shellcheck",
    path=os.pathsep.join(
      [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    ),
  )
  if shellcheck:
    subprocess.run([shellcheck, script], check=True, cwd=ROOT)


@pytest.mark.parametrize(
  "name", ["quickstart.sh", "test.sh", "tpu_pod.sh", "plan.sh"]
)
def test_help_is_the_head_of_the_script(stage, name):
  code, out, calls = launch(stage, f"launch/{name}", "--help")
  assert (code, calls) == (0, []) and f"launch/{name} " in out
  assert "#" not in out and "set -" not in out


def test_quickstart_from_any_directory_once(stage, tmp_path):
  script = stage / "launch/quickstart.sh"
  code, out, calls = launch(
    stage, script, "--workdir=my run", "--seed=3", cwd=tmp_path
  )
  assert code == 0, out
  assert modules(calls)[0] == "build_kb" and "train" in modules(calls)
  assert [
    "python",
    "-m",
    "r1router_jax.build_kb",
    f"--kb_dir={tmp_path}/my run/kb",
  ] in calls
  # Installed once; a finished run says so and starts nothing.
  assert sum(c[2] == "pip" for c in calls) == 2
  code, out, calls = launch(
    stage, script, "--workdir=my run", "--seed=3", cwd=tmp_path
  )
  assert (code, calls) == (0, []) and "complete" in out
  # Another seed does not mix with it.
  code, out, calls = launch(
    stage, script, "--workdir=my run", "--seed=4", cwd=tmp_path
  )
  assert (code, calls) == (2, []) and "--workdir=DIR" in out


def test_quickstart_stops_at_a_failure_and_takes_up_again(stage):
  code, _, calls = launch(
    stage, "launch/quickstart.sh", FAIL_ON="r1router_jax.train"
  )
  assert code == 1 and modules(calls)[-1] == "train"
  code, _, calls = launch(stage, "launch/quickstart.sh")
  assert code == 0 and modules(calls)[-1] != "train"


@pytest.mark.parametrize(
  "options, marks",
  [
    ([], "not oracle and not long"),
    (["--fast"], "not oracle and not slow and not long"),
    (["--oracle"], "not long"),
    (["--oracle", "--long"], ""),
    (["--oracle", "--fast"], "not slow and not long"),
  ],
)
def test_test_passes_on_what_it_does_not_know(stage, options, marks):
  for name in ("ruff", "shellcheck", "pytest"):
    shutil.copy(stage / "bin/srun", stage / ".venv/bin" / name)
  code, out, calls = launch(stage, "launch/test.sh", *options, "-k", "a or b")
  assert code == 0, out
  assert calls[-1] == [
    "pytest",
    "-q",
    "-n",
    "2",
    "--dist",
    "worksteal",
    "-k",
    "a or b",
    "-m",
    marks,
  ]
  assert any("torch==" in c[-1] for c in calls) == ("--oracle" in options)
  code, _, calls = launch(stage, "launch/test.sh", FAIL_ON="check .")
  assert code == 1 and calls[-1] == ["ruff", "check", "."]


def test_failed_installation_is_tried_again(stage):
  code, out, calls = launch(stage, "launch/quickstart.sh", FAIL_ON="--no-deps")
  assert code == 2 and "installation failed" in out and not modules(calls)
  code, _, calls = launch(stage, "launch/quickstart.sh")
  assert code == 0 and sum(c[2] == "pip" for c in calls) == 2


@pytest.mark.parametrize("argument", ["--seed=x", "--seed=", "--sed=1", "more"])
def test_quickstart_refuses(stage, argument):
  code, out, calls = launch(stage, "launch/quickstart.sh", argument)
  assert (code, calls) == (2, []) and argument in out


def test_tpu_pod_runs_the_same_words_on_each_worker(stage, tmp_path):
  git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", stage]
  for words in (
    ["init", "-q"],
    ["add", "launch", "setup.py"],
    ["commit", "-qm", "x"],
  ):
    subprocess.run([*git, *words], check=True)
  code, out, calls = launch(
    stage, "launch/tpu_pod.sh", "pod", "us-east5-a", *HARD
  )
  assert code == 0, out
  scp, ssh = calls
  assert scp[4] == "scp" and ssh[4] == "ssh"
  assert "--worker=all" in scp and "--worker=all" in ssh
  # What the login shell of a worker makes of it.
  worker = tmp_path / "worker"
  (worker / "r1router_jax").mkdir(parents=True)
  shutil.copytree(stage / ".venv", worker / "r1router_jax/.venv")
  subprocess.run(
    [
      *git,
      "archive",
      "--format=tgz",
      "--prefix=r1router_jax/",
      "-o",
      worker / "r1router_jax.tgz",
      "HEAD",
    ],
    check=True,
  )
  command = ssh[-1].removeprefix("--command=")
  code, out, calls = launch(stage, "-c", command, cwd=worker)
  assert code == 0, out
  assert calls[-1] == ["python", "-m", "r1router_jax.train", *HARD]


def test_slurm_runs_the_same_words_on_each_task(stage):
  code, out, calls = launch(
    stage,
    "launch/slurm.sh",
    *HARD,
    SLURM_NTASKS="2",
    SLURM_SUBMIT_DIR=str(stage),
  )
  assert code == 0, out
  assert calls[-1] == ["python", "-m", "r1router_jax.train", *HARD]
