"""Tries of a scripted teacher: outcomes, saved rows, resumed runs."""

import collections
import json
from dataclasses import replace

import jax
import pytest
from PIL import Image

from r1router_jax.common import http_client, jsonl
from r1router_jax.common.records import Passage
from r1router_jax.policy import policy_factory
from r1router_jax.protocol import templates
from r1router_jax.synthesis import output, selection, teacher_runs
from tests import fakes
from tests.fake_chat_server import serve_chat
from tests.synthesis.scripted_teacher import (
  PLACES,
  SETTINGS,
  answer,
  plan,
  question,
  read_lines,
  read_trajectories,
  run_teacher,
  write_response,
)

OUTCOMES = dict.fromkeys(("good", "bare", "thrice"), selection.KEPT)
OUTCOMES |= dict.fromkeys(("wrong", "wordy"), selection.WRONG)
OUTCOMES |= dict(stuck=selection.MALFORMED)
OUTCOMES |= dict.fromkeys(("twice", "same"), selection.REPEATED)


def test_outcomes_are_counted(tmp_path):
  # An image that is not there, and a question that differs in case.
  broken = question("seen", image="missing.png")
  again = replace(question("good"), id="again", text="GOOD,  how many people?")
  questions = [*map(question, OUTCOMES), broken, again]
  results, _ = run_teacher(tmp_path, *questions, max_tries=2)
  counts = [1 if kind == selection.KEPT else 2 for kind in OUTCOMES.values()]
  pairs = zip(OUTCOMES.values(), counts, strict=True)
  wanted = [(kind,) * count for kind, count in pairs]
  wanted += [(selection.INPUT,) * 2, (selection.DUPLICATE,)]
  assert [result.outcomes for result in results] == wanted
  # All rows go to the training side.
  summary = output.write_outputs(tmp_path, results, 0, 0.0, dict(teacher="t"))
  counts = {name: tuple(n.values()) for name, n in summary["outcomes"].items()}
  assert counts == {
    selection.KEPT: (3, 3),
    selection.INPUT: (1, 2),
    selection.MALFORMED: (1, 2),
    selection.WRONG: (2, 4),
    selection.REPEATED: (2, 4),
    selection.NO_ROW: (0, 0),
    selection.DUPLICATE: (1, 0),
  }
  assert summary["rows"] == dict(train=3, valid=0)
  assert summary["steps"] == dict(train=4 + 2 + 7, valid=0)
  assert json.loads((tmp_path / "summary.json").read_text()) == summary
  rows = read_lines(tmp_path / "trajectories.jsonl")
  assert summary["tokens"] == sum(row["tokens"] for row in rows)
  assert not (tmp_path / "grpo_dataset_valid.jsonl").read_text()


def test_saved_tries_are_judged_by_other_rules(tmp_path):
  questions = [question(name) for name in ("wordy", "twice", "same")]
  # First everything passes, then the strict rules judge what was saved.
  rules = selection.SelectionRules("recall", keep_repeated=True)
  lenient, _ = run_teacher(tmp_path, *questions, rules=rules)
  assert [result.outcomes for result in lenient] == [(selection.KEPT,)] * 3
  strict, prompts = run_teacher(tmp_path, *questions)
  assert prompts == 0
  wanted = [selection.WRONG, selection.REPEATED, selection.REPEATED]
  assert [result.outcomes for result in strict] == [(each,) for each in wanted]
  rows = [result.row["steps"] for result in lenient]
  kinds = [" ".join(step["step_type"] for step in steps) for steps in rows]
  # The loop ended "same": no plan of the teacher stops it.
  wanted = ["ret ans ret ans", "ret ans ret ans ret ans", "ret ans ans"]
  assert kinds == wanted


def test_prompts_of_rows_are_those_that_the_teacher_read(tmp_path):
  teacher = fakes.ScriptedPolicy(write_response)
  (result,), _ = run_teacher(tmp_path, question("thrice"), teacher=teacher)
  prompts = [prompt for batch in teacher.prompts for _, prompt in batch]
  assert [step["problem"] for step in result.row["steps"]] == prompts


def test_discarded_responses_are_saved(tmp_path):
  temperatures = []

  def script(kind, prompt, temperature):
    """Writes no plan at first, and one when it is asked again."""
    # The second try for a plan has another temperature than the first.
    is_again = temperatures[-1:] == [temperature] if kind == "plan" else True
    temperatures.append(temperature)
    return write_response(kind, prompt, 0) if is_again else "first thoughts"

  (result,), _ = run_teacher(tmp_path, question("bare"), script=script)
  (row,) = read_lines(tmp_path / "trajectories.jsonl")
  assert [(call["kind"], call["text"]) for call in row["calls"]] == [
    ("plan", "first thoughts"),
    ("plan", plan("None")),
    ("final", answer("18 million")),
  ]
  for call in row["calls"]:
    assert call["tokens"] == len(call["text"].split())
  assert row["teacher"] == "teacher" and row["seconds"] > 0
  assert result.row["steps"][0]["response"] == plan("None")


def right_at_final(number):
  """Returns a script that answers right at the `number`th final prompt."""
  finals = collections.Counter()

  def script(kind, prompt, temperature):
    finals[prompt] += kind == "final"
    if kind == "final" and finals[prompt] < number:
      return answer("17")
    return write_response(kind, prompt, temperature)

  return script


def test_question_is_tried_until_it_passes(tmp_path):
  questions, options = map(question, PLACES), dict(max_tries=5)
  options["script"] = right_at_final(3)
  results, _ = run_teacher(tmp_path, *questions, **options)
  wanted = selection.WRONG, selection.WRONG, selection.KEPT
  assert {result.outcomes for result in results} == {wanted}
  ids = {result.row["id"] for result in results}
  assert ids == {f"{place}/2" for place in PLACES}
  rows = read_lines(tmp_path / "trajectories.jsonl")
  assert [(row["number"], row["id"]) for row in rows] == [
    (number, place) for number in range(3) for place in PLACES
  ]
  # One try fewer is not enough.
  options = dict(script=right_at_final(3), max_tries=2)
  two_tries, _ = run_teacher(tmp_path / "two", question("Chad"), **options)
  assert two_tries[0].row is None


def test_each_try_has_its_own_random_draws(tmp_path):
  keys = []

  class KeyRecorder(fakes.ScriptedPolicy):
    def generate(
      self, prompts, key, group_size=1, sampling=None, stop=(), members=None
    ):
      # Plans that fail are sampled again from all tokens.
      assert (sampling.temperature, sampling.top_k) in ((1, 20), (1, 0))
      keys.append(jax.random.key_data(key).tobytes())
      return super().generate(prompts, key, group_size, sampling, stop)

  for seed in (0, 1):
    teacher = KeyRecorder(write_response)
    options = dict(teacher=teacher, max_tries=1 if seed else 3)
    options["settings"] = replace(SETTINGS, seed=seed)
    run_teacher(tmp_path / str(seed), question("wrong"), **options)
  assert len(keys) == len({*keys}) == 4 * 4


def read_outputs(workdir):
  """Returns all that a run writes, but for times."""
  files = {path.name: path.read_bytes() for path in workdir.glob("grpo*.jsonl")}
  rows = [
    {k: v for k, v in row.items() if k != "seconds"}
    for row in jsonl.read_rows(workdir / "trajectories.jsonl")
  ]
  summary = (workdir / "summary.json").read_bytes()
  images = {path.name: path.read_bytes() for path in workdir.glob("pictures/*")}
  return files, rows, summary, images


class Killed(Exception):
  pass


class MortalTeacher(fakes.ScriptedPolicy):
  """Is killed when it is asked for batch number `life`."""

  def __init__(self, life):
    super().__init__(write_response)
    self.life = life

  def generate(self, *args, **kwargs):
    if len(self.prompts) == self.life:
      raise Killed
    return super().generate(*args, **kwargs)


@pytest.mark.parametrize("life, torn", [(4, 0), (12, 9), (12, 700), (19, 1)])
def test_killed_run_ends_with_the_same_files(tmp_path, monkeypatch, life, torn):
  # Several chunks, of which some are saved before the kill.
  monkeypatch.setattr(teacher_runs, "CHUNK", 3)
  Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
  questions = [
    question(place, image=str(tmp_path / "a.png") if n == 4 else "")
    for n, place in enumerate((*PLACES, "wrong", "twice"))
  ]

  def run(workdir, teacher):
    results, _ = run_teacher(workdir, *questions, teacher=teacher, max_tries=2)
    output.write_outputs(workdir, results, 3, 0.4, {})
    return read_outputs(workdir)

  # The files of a run that nobody interrupts.
  whole = run(tmp_path / "whole", fakes.ScriptedPolicy(write_response))
  files, rows, _, images = whole
  assert all(files.values()) and len(rows) == 10 + 2 and images

  workdir = tmp_path / "killed"
  with pytest.raises(Killed):
    run(workdir, MortalTeacher(life))
  if torn:
    path = workdir / "trajectories.jsonl"
    path.write_bytes(path.read_bytes()[:-torn])
  # The second run continues, the third finds nothing left to do.
  second = fakes.ScriptedPolicy(write_response)
  assert run(workdir, second) == whole
  assert sum(map(len, second.prompts)) > 0
  third = fakes.ScriptedPolicy(write_response)
  assert run(workdir, third) == whole and not third.prompts


def test_resumed_try_is_the_one_that_was_saved(tmp_path, monkeypatch):
  tries = []

  def keep_try(result, run, *_):
    tries.append(run)
    return result

  monkeypatch.setattr(teacher_runs, "_add_run", keep_try)
  kbs = fakes.make_kbs() | dict(table=fakes.PicturedKB("table"))
  for _ in range(2):
    run_teacher(tmp_path, question("good"), kbs=kbs)
  first, again = tries
  assert first == again
  assert first.trajectory.rounds[0].passages[0].image == "/pictures/a.png"


def test_other_teacher_settings_or_question_start_anew(tmp_path):
  good = question("good")
  _, whole = run_teacher(tmp_path, good)
  assert run_teacher(tmp_path, good)[1] == 0
  label = dict(fingerprint="g", prompts="full 1", kbs="k")
  assert run_teacher(tmp_path, good, label=label)[1] == whole
  for changes in (dict(k=1), dict(method="few_shot")):
    settings = replace(SETTINGS, **changes)
    assert run_teacher(tmp_path, good, settings=settings)[1] == whole
  changed = replace(good, text="good, how few people?")
  assert run_teacher(tmp_path, changed)[1] == whole
  with pytest.raises(ValueError, match="Two questions have the id 'good'"):
    run_teacher(tmp_path, good, changed)


def test_rows_of_older_versions_are_resumed(tmp_path):
  """The keys of a row are those that runs have been saved with."""
  run_teacher(tmp_path, question("good"))
  (row,) = read_lines(tmp_path / "trajectories.jsonl")
  label = dict(fingerprint="f", prompts="full 1", kbs="k", seed=0, max_steps=3)
  label |= dict(temperature=1.0, top_k=20, top_p=1.0, k=2, few_shot=False)
  assert row.items() >= (label | dict(number=0, teacher="teacher")).items()
  assert {*row} - {*label} == {
    *("id", "question", "image", "family", "gold", "rounds", "final"),
    *("faults", "tokens", "cut", "calls", "number", "teacher", "seconds"),
    *("image_digest", "crc"),
  }


def test_steps_that_would_be_read_otherwise_are_no_row(tmp_path, caplog):
  class OddPassages(fakes.EchoKB):
    def _search_uncached(self, queries, k):
      return [[Passage("a", "table", "one\ntar-1: and two")] for _ in queries]

  # A line that a reader of rows takes for another passage.
  kbs = fakes.make_kbs() | dict(table=OddPassages("table"))
  (result,), _ = run_teacher(tmp_path, question("good"), kbs=kbs)
  assert result.outcomes == (selection.NO_ROW,) and result.row is None
  assert "good/0 is no row: its steps would be read as others" in caplog.text


def test_label_tells_teachers_prompts_and_knowledge_bases(monkeypatch):
  monkeypatch.setattr(policy_factory, "fingerprint", lambda teacher: "f")
  teacher = fakes.ScriptedPolicy(write_response)
  label = teacher_runs.teacher_label(teacher, fakes.make_kbs())
  assert label["fingerprint"] == "f" and label["prompts"].startswith("full ")
  kbs = fakes.make_kbs() | dict(text=fakes.EchoKB("x"))
  other = teacher_runs.teacher_label(teacher, kbs)
  assert other["kbs"] != label["kbs"] and other["prompts"] == label["prompts"]
  full = templates.STYLES["full"]
  # A template that differs by one space is another prompt.
  changed = replace(full, final=full.final + " ")
  monkeypatch.setitem(templates.STYLES, "full", changed)
  changed_label = teacher_runs.teacher_label(teacher, fakes.make_kbs())
  assert changed_label["prompts"] != label["prompts"]


def test_teacher_behind_an_address(tmp_path, monkeypatch):
  monkeypatch.delenv(http_client.API_KEY_VARIABLE, raising=False)
  kinds = {text: kind for kind, text in templates.STYLES["full"].system.items()}

  def respond(system, user, body):
    assert (body["temperature"], body["top_p"]) == (1, 1)
    return write_response(kinds[system], user, body["temperature"])

  def outcomes_and_steps(results):
    return [(r.outcomes, r.row and r.row["steps"]) for r in results]

  # The same script, here and behind an address.
  questions = list(map(question, ("good", "wrong", "thrice")))
  local, _ = run_teacher(tmp_path / "local", *questions)
  remote = tmp_path / "remote"
  vllm = dict(data=[dict(id="some-model", owned_by="vllm")])
  with serve_chat(respond, models=vllm) as (address, bodies):
    teacher = policy_factory.open_policy(address)
    results, _ = run_teacher(remote, *questions, teacher=teacher)
    assert outcomes_and_steps(results) == outcomes_and_steps(local)
    assert {body.get("top_k") for body in bodies} == {20}
    count = len(bodies)
    run_teacher(remote, *questions, teacher=teacher)
    assert len(bodies) == count
    # Examples are shown to the teacher, and are no part of rows.
    settings = replace(SETTINGS, method="few_shot")
    options = dict(teacher=teacher, settings=settings)
    shown, _ = run_teacher(remote, *questions, **options)
    assert outcomes_and_steps(shown) == outcomes_and_steps(local)
    assert len(bodies) > count  # Tries without examples are not taken over.
    has_examples = [len(body["messages"]) > 2 for body in bodies]
    assert has_examples == [i >= count for i in range(len(bodies))]


def test_rows_hold_what_the_teacher_did(tmp_path):
  results, _ = run_teacher(tmp_path, question("good"), question("thrice"))
  output.write_outputs(tmp_path, results, 0, 0.0, {})
  good, thrice = (row.steps for row in read_trajectories(tmp_path))
  assert [step.kind for step in thrice] == ["plan", "answer"] * 3 + ["final"]
  asked, told, stop, final = good
  assert (asked.sub_question, asked.routes) == ("How MANY people?", ("table",))
  assert asked.response == plan("How MANY people?", "table")
  assert told.answers == ("18 Million",)
  assert told.response == answer("18 Million")
  assert [p.text for p in told.passages] == ["table on How MANY people?"] * 2
  assert (stop.sub_question, stop.routes) == ("None", ("none",))
  assert final.answers == ("18 million",)
  assert final.history == (("How MANY people?", "18 Million"),)
  row = read_lines(tmp_path / "grpo_dataset_train.jsonl")[0]
  scores = {"table/0": 1.0, "table/1": 0.9}
  wanted = [dict(id=id, kb="table", score=x) for id, x in scores.items()]
  assert row["steps"][1]["passages"] == wanted
  assert (row["id"], row["question_id"]) == ("good/0", "good")
  about = dict(name="teacher", fingerprint="f", prompts="full 1", seed=0)
  about |= dict(temperature=1.0, top_k=20, number=0)
  assert row["teacher"].items() >= about.items()
