"""The launch scripts run for real; stand-ins replace the programs they call.

A stand-in logs its arguments, so that the tests see what arrives after all
shells in between.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

SCRIPTS = sorted(ROOT.glob("launch/*.sh")) + [ROOT / ".ci/run"]

# Arguments that a shell would change if they were not quoted.
HARD_ARGUMENTS = ["--config.name=it's  $HOME", '--x="q" *']
HARD_ARGUMENTS += ["--y=a\\b;`id`\nnext", "ünï"]

# Logs its arguments, then behaves enough like the program it stands for:
# Python really runs the short scripts of _env.sh, srun runs its command, and
# anything fails if FAIL_ON is among the arguments.
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
def checkout(tmp_path):
  """Return a copy of the scripts with a virtual environment of stand-ins."""
  # With a space, as folders of users have.
  checkout = tmp_path / "a folder"
  shutil.copytree(ROOT / "launch", checkout / "launch")
  (checkout / "setup.py").write_text("")
  for folder in ("bin", ".venv/bin"):
    (checkout / folder).mkdir(parents=True)
  for path in ("bin/gcloud", "bin/srun", ".venv/bin/python"):
    (checkout / path).write_text(STAND_IN)
    (checkout / path).chmod(0o755)
  return checkout


def run_bash(checkout, *command, cwd=None, **env):
  """Run `bash *command`; return exit code, output, and calls of stand-ins."""
  log = checkout / "calls.jsonl"
  log.unlink(missing_ok=True)
  env |= dict(PATH=f"{checkout / 'bin'}:{os.environ['PATH']}")
  env |= dict(HOME=str(checkout), CALLS=str(log))
  command, options = ["bash", *map(str, command)], dict(timeout=60, text=True)
  done = subprocess.run(
    command, cwd=cwd or checkout, capture_output=True, env=env, **options
  )
  lines = log.read_text().splitlines() if log.exists() else []
  calls = [json.loads(line) for line in lines]
  return done.returncode, done.stdout + done.stderr, calls


def called_modules(calls):
  """Return the names of the package's modules that were run."""
  return [
    call[2].removeprefix("r1router_jax.")
    for call in calls
    if call[:2] == ["python", "-m"] and call[2] != "pip"
  ]


def count_pip_calls(calls):
  return sum(call[2] == "pip" for call in calls)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_has_no_shell_errors(script):
  subprocess.run(["bash", "-n", script], check=True)
  # shellcheck may be installed beside Python without being on PATH.
  folders = str(pathlib.Path(sys.executable).parent), os.environ["PATH"]
  shellcheck = shutil.which("shellcheck", path=os.pathsep.join(folders))
  if shellcheck:
    subprocess.run([shellcheck, script], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["quickstart", "test", "tpu_pod", "plan"])
def test_help_is_the_head_of_the_script(checkout, name):
  code, out, calls = run_bash(checkout, f"launch/{name}.sh", "--help")
  assert (code, calls) == (0, []) and f"launch/{name}.sh " in out
  assert "#" not in out and "set -" not in out


def test_quickstart_runs_once_from_any_directory(checkout, tmp_path):
  def quickstart(seed):
    flags = "--workdir=my run", f"--seed={seed}"
    script = checkout / "launch/quickstart.sh"
    return run_bash(checkout, script, *flags, cwd=tmp_path)

  code, out, calls = quickstart(3)
  modules = called_modules(calls)
  assert code == 0 and modules[0] == "build_kb" and "train" in modules, out
  kb_flag = f"--kb_dir={tmp_path}/my run/kb"
  assert ["python", "-m", "r1router_jax.build_kb", kb_flag] in calls
  # Installed once; a finished run says so and starts nothing.
  assert count_pip_calls(calls) == 2
  code, out, calls = quickstart(3)
  assert (code, calls) == (0, []) and "complete" in out
  # A run of another seed does not mix with it.
  code, out, calls = quickstart(4)
  assert (code, calls) == (2, []) and "--workdir=DIR" in out


def test_quickstart_stops_at_a_failure_and_resumes(checkout):
  failure = dict(FAIL_ON="r1router_jax.train")
  code, _, calls = run_bash(checkout, "launch/quickstart.sh", **failure)
  assert code == 1 and called_modules(calls)[-1] == "train"
  code, _, calls = run_bash(checkout, "launch/quickstart.sh")
  assert code == 0 and called_modules(calls)[-1] != "train"


TEST_OPTIONS = {
  "": "not oracle and not long and not fuzz",
  "--fast": "not oracle and not slow and not long and not fuzz",
  "--oracle": "not long and not fuzz",
  "--oracle --long": "not fuzz",
  "--oracle --long --fuzz": "",
  "--oracle --fast": "not slow and not long and not fuzz",
}


@pytest.mark.parametrize("options", TEST_OPTIONS)
def test_test_script_passes_unknown_arguments_to_pytest(checkout, options):
  for name in ("ruff", "shellcheck", "pytest"):
    shutil.copy(checkout / "bin/srun", checkout / ".venv/bin" / name)
  args = *options.split(), "-k", "a or b"
  code, out, calls = run_bash(checkout, "launch/test.sh", *args)
  assert code == 0, out
  pytest_call = "pytest -q -n 2 --dist worksteal -k".split()
  assert calls[-1] == [*pytest_call, "a or b", "-m", TEST_OPTIONS[options]]
  # Only comparisons with PyTorch install it.
  assert any("torch==" in c[-1] for c in calls) == ("--oracle" in options)
  code, _, calls = run_bash(checkout, "launch/test.sh", FAIL_ON="check .")
  assert code == 1 and calls[-1] == ["ruff", "check", "."]


def test_failed_installation_is_tried_again(checkout):
  failure = dict(FAIL_ON="--no-deps")
  code, out, calls = run_bash(checkout, "launch/quickstart.sh", **failure)
  assert code == 2 and "installation failed" in out
  assert not called_modules(calls)
  code, _, calls = run_bash(checkout, "launch/quickstart.sh")
  assert code == 0 and count_pip_calls(calls) == 2


@pytest.mark.parametrize("argument", ["--seed=x", "--seed=", "--sed=1", "more"])
def test_quickstart_rejects_unknown_arguments(checkout, argument):
  code, out, calls = run_bash(checkout, "launch/quickstart.sh", argument)
  assert (code, calls) == (2, []) and argument in out


def test_tpu_pod_passes_arguments_to_each_worker(checkout, tmp_path):
  git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", checkout]
  # The script sends the last commit.
  subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "launch", "setup.py"], check=True)
  subprocess.run([*git, "commit", "-qm", "x"], check=True)
  args = "pod", "us-east5-a", *HARD_ARGUMENTS
  code, out, calls = run_bash(checkout, "launch/tpu_pod.sh", *args)
  assert code == 0, out
  # One copy and one command, each for all workers.
  scp, ssh = calls
  assert scp[4] == "scp" and ssh[4] == "ssh"
  assert "--worker=all" in scp and "--worker=all" in ssh
  # Run on this machine what the login shell of a worker would run: the archive
  # lies in its home.
  worker = tmp_path / "worker"
  (worker / "r1router_jax").mkdir(parents=True)
  shutil.copytree(checkout / ".venv", worker / "r1router_jax/.venv")
  archive = "archive", "--format=tgz", "--prefix=r1router_jax/"
  output = worker / "r1router_jax.tgz"
  subprocess.run([*git, *archive, "-o", output, "HEAD"], check=True)
  command = ssh[-1].removeprefix("--command=")
  code, out, calls = run_bash(checkout, "-c", command, cwd=worker)
  assert code == 0, out
  assert calls[-1] == ["python", "-m", "r1router_jax.train", *HARD_ARGUMENTS]


@pytest.mark.parametrize(
  "args",
  [("pod",), ("pod", "--config=a"), ("--config=a", "us-east5-a"), ("pod", "a")],
)
def test_tpu_pod_rejects_what_is_no_name_or_zone(checkout, args):
  code, out, calls = run_bash(checkout, "launch/tpu_pod.sh", *args)
  assert (code, calls) == (2, []) and re.search("ZONE|NAME", out)


# What SLURM's record of a job says of its script, beside much else.
RECORD = """#!/bin/bash
echo "JobId=$3 JobName=r1router"
echo "   Command=$SCRIPT --config=a/launch b"
echo "   WorkDir=/elsewhere"
"""


@pytest.mark.parametrize("record", ["", "exit 1", RECORD])
def test_slurm_passes_arguments_to_each_task(checkout, tmp_path, record):
  """SLURM runs a copy of the script, in the folder that it was submitted in."""
  copy = tmp_path / "spool/slurm_script"
  copy.parent.mkdir()
  shutil.copy(checkout / "launch/slurm.sh", copy)
  folder = tmp_path if record == RECORD else checkout
  if record:
    (checkout / "bin/scontrol").write_text(record)
    (checkout / "bin/scontrol").chmod(0o755)
  env = dict(SLURM_NTASKS="2", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(folder))
  env["SCRIPT"] = str(checkout / "launch/slurm.sh")
  code, out, calls = run_bash(
    checkout, copy, *HARD_ARGUMENTS, cwd=folder, **env
  )
  assert code == 0, out
  assert calls[-1] == ["python", "-m", "r1router_jax.train", *HARD_ARGUMENTS]


def test_slurm_names_a_repository_that_is_not_there(checkout, tmp_path):
  copy = shutil.copy(checkout / "launch/slurm.sh", tmp_path / "slurm_script")
  env = dict(SLURM_NTASKS="2", SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(tmp_path))
  code, out, calls = run_bash(checkout, copy, cwd=tmp_path, **env)
  assert (code, calls) == (2, []) and "Submit launch/slurm.sh" in out


def test_slurm_is_asked_for_a_signal_before_the_time_limit():
  lines = (ROOT / "launch/slurm.sh").read_text().splitlines()
  # `train` saves on SIGTERM; SLURM may come a minute early or late.
  assert (
    "#SBATCH --signal=TERM@300" in lines[: lines.index("set -euo pipefail")]
  )
