"""A scripted teacher's trajectories: kept, dropped, split, read and learnt."""

import collections
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags as absl_flags
from absl.testing import flagsaver
from PIL import Image

from r1router_jax import synthesize
from r1router_jax.common.records import Answer, Passage, Plan, Question
from r1router_jax.common.row_files import BadRow
from r1router_jax.data import (
  georouter,
  gold_steps,
  r1_router_rows,
  r1_router_rows_tfds,
)
from r1router_jax.policy import interface, openai_policy
from r1router_jax.protocol import format, templates
from r1router_jax.retrieval.encoders import http_encoders
from r1router_jax.rewards import step_reward
from r1router_jax.synthesis import output, selection
from r1router_jax.training import sft_targets, train_data
from tests import fakes
from tests.fake_chat_server import chatting
from tests.retrieval import kb_servers

SETTINGS = synthesize.Settings(k=2)

RULES = selection.Rules()

PLACES = ("Chad", "Italy", "Peru", "Fiji", "Oman", "Cuba", "Iran", "Mali")


def plan(sub_question, route="text", thought="One\n thing."):
  return format.render_plan(Plan(thought, sub_question, route)).replace(
    "</think>", "</think>\n"
  )


def answer(text, thought="As it says."):
  return format.render_answer(Answer(thought, text))


def question(text, **more):
  return Question(text, f"{text}, how many people?", ("18 million",), **more)


def script(kind, prompt, temperature):
  """What it does is named by the question."""
  rounds = prompt.count("Sub-question")
  if kind == "plan":
    if "stuck" in prompt:
      return "no plan"
    if "twice" in prompt:  # Of another knowledge base, so it is asked.
      return (
        plan(
          " Who IS it?" if rounds else "Who is it?",
          ("text", "table", "none")[rounds],
        )
        if rounds < 2
        else plan("None", "none")
      )
    if "same" in prompt:
      return plan("Who is it?")
    if "thrice" in prompt:
      return plan(f"Who is {rounds}?")
    if "bare" in prompt or rounds:
      return plan("None", "none")
    return plan("How MANY people?", "table")
  if kind == "answer":
    return "no tags" if "babble" in prompt else answer("18 Million")
  return answer(
    {"wrong": "17", "wordy": "It has 18 million"}.get(
      prompt.split()[2].strip(",:"), "18 million"
    )
  )


def walk(
  out,
  *questions,
  say=script,
  rules=RULES,
  tries=1,
  teacher=None,
  label=None,
  settings=SETTINGS,
):
  teacher = teacher or fakes.Scripted(say)
  found = synthesize.walk(
    teacher,
    fakes.kbs(),
    questions,
    settings,
    rules,
    out,
    tries=tries,
    label=label or dict(fingerprint="f", prompts="full 1", kbs="k"),
  )
  return found, sum(map(len, teacher.asked)) if hasattr(teacher, "asked") else 0


def read(out, side="train"):
  return list(
    r1_router_rows.load(
      str(out / f"grpo_dataset_{side}.jsonl"), str(out / "pictures")
    )
  )


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


CASES = dict(
  good=selection.KEPT,
  bare=selection.KEPT,
  thrice=selection.KEPT,
  wrong=selection.WRONG,
  wordy=selection.WRONG,
  stuck=selection.MALFORMED,
  twice=selection.REPEATED,
  same=selection.REPEATED,
)


def test_outcomes_are_counted(tmp_path):
  broken = question("seen", image="missing.png")
  again = dataclasses.replace(
    question("good"), id="again", text="GOOD,  how many people?"
  )
  asked = [*map(question, CASES), broken, again]
  found, _ = walk(tmp_path, *asked, tries=2)
  tries = lambda outcome: 1 if outcome == selection.KEPT else 2
  assert [f.outcomes for f in found] == [
    *((outcome,) * tries(outcome) for outcome in CASES.values()),
    (selection.INPUT,) * 2,
    (selection.DUPLICATE,),
  ]
  summary = output.write(tmp_path, found, 0, 0.0, dict(teacher="t"))
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
  rows = lines(tmp_path / "trajectories.jsonl")
  assert summary["tokens"] == sum(row["tokens"] for row in rows)
  assert not (tmp_path / "grpo_dataset_valid.jsonl").read_text()


def test_what_is_kept_for_an_interval_is_rewarded(tmp_path):
  asked = dataclasses.replace(
    question("good"), answers=("17.5",), interval=(17.0, 19.0)
  )
  rules = selection.Rules("recall")
  (found,), _ = walk(tmp_path, asked, rules=rules)
  assert found.outcomes == (selection.KEPT,)
  assert found.row["steps"][-1]["answer"] == ["17.5", "18 million"]
  reward = step_reward.StepReward(lambda texts: np.eye(len(texts)), "reference")
  *_, final = r1_router_rows.parse(found.row, "q", "")
  assert reward([final], [final.response]) == 1


def test_filters_and_repeats_are_a_choice(tmp_path):
  asked = [question(name) for name in ("wordy", "twice", "same")]
  found, _ = walk(tmp_path, *asked, rules=selection.Rules("recall", True))
  assert [f.outcomes for f in found] == [(selection.KEPT,)] * 3
  # Walked again by nobody: what is there is judged by other rules.
  again, count = walk(tmp_path, *asked)
  assert count == 0
  assert [f.outcomes for f in again] == [
    (selection.WRONG,),
    (selection.REPEATED,),
    (selection.REPEATED,),
  ]
  kinds = [[step["step_type"] for step in f.row["steps"]] for f in found]
  # "same" was ended by the loop: no plan of the teacher's stops it.
  assert kinds == [
    ["ret", "ans", "ret", "ans"],
    ["ret", "ans"] * 2 + ["ret", "ans"],
    ["ret", "ans", "ans"],
  ]


def test_a_row_says_what_the_teacher_did(tmp_path):
  walked, _ = walk(tmp_path, question("good"), question("thrice"))
  output.write(tmp_path, walked, 0, 0.0, {})
  good, thrice = (row.steps for row in read(tmp_path))
  assert [step.kind for step in thrice] == ["plan", "answer"] * 3 + ["final"]
  asked, told, stop, final = good
  assert (asked.sub_question, asked.routes) == ("How MANY people?", ("table",))
  assert asked.response == plan("How MANY people?", "table")
  assert told.answers == ("18 Million",) and told.response == answer(
    "18 Million"
  )
  assert [p.text for p in told.passages] == ["table on How MANY people?"] * 2
  assert (stop.sub_question, stop.routes) == ("None", ("none",))
  assert final.answers == ("18 million",)
  assert final.history == (("How MANY people?", "18 Million"),)
  row = lines(tmp_path / "grpo_dataset_train.jsonl")[0]
  assert row["steps"][1]["passages"] == [
    dict(id="table/0", kb="table", score=1.0),
    dict(id="table/1", kb="table", score=0.9),
  ]
  assert (row["id"], row["question_id"]) == ("good/0", "good")
  assert (
    row["teacher"].items()
    >= dict(
      name="teacher",
      fingerprint="f",
      prompts="full 1",
      seed=0,
      temperature=1.0,
      top_k=20,
      number=0,
    ).items()
  )
  # What is taught is what it wrote, and not a set phrase.
  assert sft_targets.demonstration(asked) == (
    "<think>One thing.</think><sub-question>How MANY people?</sub-question>"
    "<ret>Table Retriever</ret>"
  )


def test_the_prompts_of_rows_are_those_the_teacher_read(tmp_path):
  teacher = fakes.Scripted(script)
  (found,), _ = walk(tmp_path, question("thrice"), teacher=teacher)
  read = [prompt for asked in teacher.asked for _, prompt in asked]
  assert [step["problem"] for step in found.row["steps"]] == read


def test_everything_that_was_written_is_kept(tmp_path):
  def say(kind, prompt, temperature):
    tried = warmths[-1:] == [temperature] if kind == "plan" else True
    warmths.append(temperature)
    return script(kind, prompt, 0) if tried else "first thoughts"

  warmths = []
  (found,), _ = walk(tmp_path, question("bare"), say=say)
  (row,) = lines(tmp_path / "trajectories.jsonl")
  assert [(call["kind"], call["text"]) for call in row["calls"]] == [
    ("plan", "first thoughts"),
    ("plan", plan("None", "none")),
    ("final", answer("18 million")),
  ]
  assert [call["tokens"] for call in row["calls"]] == [
    len(call["text"].split()) for call in row["calls"]
  ]
  assert row["teacher"] == "teacher" and row["seconds"] > 0
  assert found.row["steps"][0]["response"] == plan("None", "none")


def flaky(number):
  """Right at the `number`th time that it is asked for a final answer."""
  finals = collections.Counter()

  def say(kind, prompt, temperature):
    finals[prompt] += kind == "final"
    return (
      answer("17")
      if kind == "final" and (finals[prompt] < number)
      else script(kind, prompt, temperature)
    )

  return say


def test_a_question_is_tried_until_it_passes(tmp_path):
  found, _ = walk(tmp_path, *map(question, PLACES), say=flaky(3), tries=5)
  assert {f.outcomes for f in found} == {
    (selection.WRONG, selection.WRONG, selection.KEPT)
  }
  assert {f.row["id"] for f in found} == {f"{place}/2" for place in PLACES}
  rows = lines(tmp_path / "trajectories.jsonl")
  assert [(row["number"], row["id"]) for row in rows] == [
    (number, place) for number in range(3) for place in PLACES
  ]
  once, _ = walk(tmp_path / "once", question("Chad"), say=flaky(3), tries=2)
  assert once[0].row is None


def test_each_try_has_samples_of_its_own(tmp_path):
  keys = []

  class Seen(fakes.Scripted):
    def generate(self, conversations, key, n=1, method=None, stop=()):
      assert (method.temperature, method.top_k) in ((1, 20), (1, 0))
      keys.append(jax.random.key_data(key).tobytes())
      return super().generate(conversations, key, n, method)

  walk(tmp_path, question("wrong"), teacher=Seen(script), tries=3)
  walk(
    tmp_path / "other",
    question("wrong"),
    teacher=Seen(script),
    settings=dataclasses.replace(SETTINGS, seed=1),
  )
  assert len(keys) == len({*keys}) == 4 * 4


def snapshot(out):
  """All that a run makes, but for times."""
  made = {path.name: path.read_bytes() for path in out.glob("grpo*.jsonl")}
  kept = []
  for line in (out / "trajectories.jsonl").read_text().splitlines():
    try:
      kept.append({k: v for k, v in json.loads(line).items() if k != "seconds"})
    except ValueError:
      pass
  return (
    made,
    kept,
    (out / "summary.json").read_bytes(),
    {path.name: path.read_bytes() for path in out.glob("pictures/*")},
  )


class Killed(Exception):
  pass


@pytest.mark.parametrize("after, torn", [(4, 0), (12, 9), (12, 700), (19, 1)])
def test_a_killed_run_ends_with_the_same_files(
  tmp_path, monkeypatch, after, torn
):
  monkeypatch.setattr(synthesize, "CHUNK", 3)
  Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
  asked = [
    question(p, image=str(tmp_path / "a.png") if n == 4 else "")
    for n, p in enumerate((*PLACES, "wrong", "twice"))
  ]

  def run(out, teacher):
    found, _ = walk(out, *asked, teacher=teacher, tries=2)
    output.write(out, found, 3, 0.4, {})
    return snapshot(out)

  whole = run(tmp_path / "whole", fakes.Scripted(script))
  assert all(whole[0].values()) and len(whole[1]) == 10 + 2 and whole[3]

  class Mortal(fakes.Scripted):
    def generate(self, *args, **kwargs):
      if len(self.asked) == after:
        raise Killed
      return super().generate(*args, **kwargs)

  out = tmp_path / "killed"
  with pytest.raises(Killed):
    run(out, Mortal(script))
  path = out / "trajectories.jsonl"
  if torn:
    path.write_bytes(path.read_bytes()[:-torn])
  second = fakes.Scripted(script)
  assert run(out, second) == whole
  assert 0 < sum(map(len, second.asked))
  third = fakes.Scripted(script)
  assert run(out, third) == whole and not third.asked


def test_other_teachers_start_anew(tmp_path):
  _, whole = walk(tmp_path, question("good"))
  assert walk(tmp_path, question("good"))[1] == 0
  other = dict(fingerprint="g", prompts="full 1", kbs="k")
  assert walk(tmp_path, question("good"), label=other)[1] == whole
  assert (
    walk(
      tmp_path, question("good"), settings=dataclasses.replace(SETTINGS, k=1)
    )[1]
    == whole
  )
  changed = dataclasses.replace(question("good"), text="good, how few people?")
  assert walk(tmp_path, changed)[1] == whole
  with pytest.raises(ValueError, match="Two questions have the id 'good'"):
    walk(tmp_path, question("good"), changed)


def test_what_would_be_read_otherwise_is_no_row(tmp_path, caplog):
  class Odd(fakes.Echo):
    def _find(self, queries, k):
      return [[Passage("a", "table", "one\ntar-1: and two")] for _ in queries]

  odd = fakes.kbs() | dict(table=Odd("table"))
  (found,) = synthesize.walk(
    fakes.Scripted(script),
    odd,
    [question("good")],
    SETTINGS,
    RULES,
    tmp_path,
    label={},
  )
  assert found.outcomes == (selection.NO_ROW,) and found.row is None
  assert "good/0 is no row: its steps would be read as others" in caplog.text


def test_a_question_without_golds_never_passes(tmp_path):
  (found,), _ = walk(tmp_path, Question("q", "good?"))
  assert found.outcomes == (selection.WRONG,)


# ---- The split.


def test_the_split_keeps_a_question_together(tmp_path):
  Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
  shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
  Image.new("RGB", (9, 9), "blue").save(tmp_path / "c.png")
  group = lambda text, image="": selection.group(
    Question("", text, image=str(tmp_path / image) if image else "")
  )
  assert group("Whose flag?", "a.png") == group("WHOSE  flag?", "b.png")
  assert (
    len(
      {
        group("Whose flag?", image)
        for image in ("", "a.png", "c.png", "missing.png")
      }
    )
    == 4
  )
  assert group("Whose flag?") != group("Whose map?")


def test_the_split_is_by_chance_and_by_the_question_alone():
  groups = [
    selection.group(Question("", f"question {n}?")) for n in range(2000)
  ]
  sides = lambda seed, valid: [selection.side(g, seed, valid) for g in groups]
  assert sides(0, 0.2) == sides(0, 0.2)
  assert 340 < sides(0, 0.2).count("valid") < 460
  both = [
    a == b == "valid" for a, b in zip(sides(0, 0.2), sides(1, 0.2), strict=True)
  ]
  assert 50 < sum(both) < 115  # Independent seeds: 80.
  # A larger share takes no question back.
  assert all(
    b == "valid"
    for a, b in zip(sides(0, 0.2), sides(0, 0.5), strict=True)
    if a == "valid"
  )
  assert set(sides(0, 0.0)) == {"train"} and set(sides(0, 1.0)) == {"valid"}


def test_files_hold_what_the_split_says(tmp_path):
  found, _ = walk(tmp_path, *map(question, PLACES))
  output.write(tmp_path, found, 3, 0.4, {})
  for side in selection.SIDES:
    rows = lines(tmp_path / f"grpo_dataset_{side}.jsonl")
    wanted = [
      place
      for place in PLACES
      if selection.side(selection.group(question(place)), 3, 0.4) == side
    ]
    assert [row["question_id"] for row in rows] == wanted and wanted
    data = tfds.data_source(
      "grpo_rows/synthesis", split=side, data_dir=tmp_path / "tfds"
    )
    steps = {
      row["id"].decode(): r1_router_rows_tfds.steps(row, "") for row in data
    }
    assert steps == {row.id: row.steps for row in read(tmp_path, side)}


# ---- The world, and training.


class Knowing(fakes.Scripted):
  """Follows the gold trace of each question, which it knows by its picture."""

  def __init__(self, questions):
    super().__init__(None)
    self.known = {(q.text, q.image): q for q in questions}

  def generate(self, conversations, key, n=1, method=None, stop=()):
    shown = iter([(*c.pictures, "")[0] for c in conversations])
    self.script = lambda kind, prompt, _: self.say(kind, prompt, next(shown))
    return super().generate(conversations, key, n, method)

  def say(self, kind, prompt, picture):
    if kind == "answer":
      asked = prompt.rpartition("Question: ")[2]
      return answer(
        next(
          hop.answers[0]
          for (_, image), q in self.known.items()
          for hop in q.hops
          if hop.sub_question.lower() == asked and image == picture
        )
      )
    of = self.known[
      prompt.split("\n")[0].removeprefix("Origin question: "), picture
    ]
    if kind == "final":
      return answer(of.answers[0])
    done = prompt.count("Sub-question")
    return (
      plan("None", "none")
      if done == len(of.hops)
      else plan(of.hops[done].sub_question, of.hops[done].routes[0])
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """Rows of a teacher who knows the gold traces, half of them of pictures."""
  out = tmp_path_factory.mktemp("world")
  questions = [q for q in georouter.questions("train") if q.hops]
  some = {
    (q.text, q.image): q
    for q in [q for q in questions if q.image][:40:10]
    + [q for q in questions if not q.image][:40:10]
  }
  found, _ = walk(out, *some.values(), teacher=Knowing(some.values()))
  summary = output.write(out, found, 0, 0.3, {})
  assert min(summary["rows"].values()) > 0
  assert sum(summary["rows"].values()) == len(some) == 8
  return out, {q.id: q for q in some.values()}


def test_the_gold_trace_comes_back(world):
  out, questions = world
  for side in selection.SIDES:
    rows = lines(out / f"grpo_dataset_{side}.jsonl")
    for row, loaded in zip(rows, read(out, side), strict=True):
      of = questions[row["question_id"]]
      (wanted,) = gold_steps.gold_steps([of], lambda asked: [()] * len(asked))
      assert [
        (s.kind, s.sub_question, s.answers[:1], s.routes[:1])
        for s in loaded.steps
      ] == [
        (s.kind, s.sub_question, s.answers[:1], s.routes[:1]) for s in wanted
      ]
      image = loaded.steps[0].question.image
      assert bool(image) == bool(of.image)
      if image:
        assert (
          pathlib.Path(image).read_bytes()
          == pathlib.Path(of.image).read_bytes()
        )
    assert not [
      row
      for row in r1_router_rows.read(
        str(out / f"grpo_dataset_{side}.jsonl"), str(out / "pictures")
      )
      if isinstance(row, BadRow)
    ]


def test_the_trainer_takes_all_of_it(world):
  out, _ = world
  policy = openai_policy.open_policy("warm_start")
  steps = [step for row in read(out) for step in row.steps]
  kept, shapes = train_data.choose(policy, steps, "rows")
  assert kept == steps and len(shapes) == len(steps)


@pytest.mark.slow
def test_it_is_learnt(world, tmp_path):
  """Thoughts and all: the loss is that of what the teacher wrote."""
  from r1router_jax import train
  from tests.test_train import config, scalars

  out, _ = world
  c = config(
    "sft",
    "smoke",
    **{
      "data.rows": str(out / "grpo_dataset_train.jsonl"),
      "data.images": str(out / "pictures"),
      "sft.recall_steps": 0,
      "sft.recall_share": 0.0,
      "sft.rename": (0.0, 0.0),
      "total_steps": 12,
      "optim.muon_lr": 1e-3,
    },
  )
  train.train(c, tmp_path)
  losses = [line["nll"] for line in scalars(tmp_path)]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.fixture
def parsed():
  absl_flags.FLAGS.mark_as_parsed()
  yield
  absl_flags.FLAGS.unparse_flags()


def test_the_command_says_what_passed_and_what_is_next(
  tmp_path, monkeypatch, parsed, capsys
):
  teachers = iter(
    [
      Knowing(georouter.questions("val")),
      fakes.Scripted(lambda *of: answer("17")),
    ]
  )
  monkeypatch.setattr(openai_policy, "open_policy", lambda name: next(teachers))
  monkeypatch.setattr(
    openai_policy, "fingerprint", lambda teacher: repr(type(teacher))
  )
  monkeypatch.setattr(
    synthesize.knowledge_base, "open_kbs", lambda where: fakes.kbs()
  )
  with flagsaver.flagsaver(
    out=str(tmp_path), split="val", questions=6, seed=0, valid=0.5
  ):
    synthesize.main([])
    said = capsys.readouterr().out
    assert "kept                        6      6" in said
    rows = {
      side: len(lines(tmp_path / f"grpo_dataset_{side}.jsonl"))
      for side in selection.SIDES
    }
    assert (
      f"{rows['train']} trajectories of" in said and sum(rows.values()) == 6
    )
    assert f"--config.data.rows={tmp_path}/grpo_dataset_train.jsonl" in said
    with pytest.raises(ValueError, match="None of 6 questions passed"):
      synthesize.main([])
    assert not (tmp_path / "grpo_dataset_train.jsonl").read_text()


def test_labels_tell_teachers_prompts_and_knowledge_bases(monkeypatch):
  monkeypatch.setattr(openai_policy, "fingerprint", lambda teacher: "f")
  label = synthesize.label_of(fakes.Scripted(script), fakes.kbs())
  assert label["fingerprint"] == "f" and label["prompts"].startswith("full ")
  other = synthesize.label_of(
    fakes.Scripted(script), fakes.kbs() | dict(text=fakes.Echo("x"))
  )
  assert other["kbs"] != label["kbs"] and other["prompts"] == label["prompts"]
  full = templates.STYLES["full"]
  monkeypatch.setitem(
    templates.STYLES, "full", dataclasses.replace(full, final=full.final + " ")
  )
  assert (
    synthesize.label_of(fakes.Scripted(script), fakes.kbs())["prompts"]
    != label["prompts"]
  )


def test_questions_are_one_line():
  found = selection.questions_of("georouter", "", "", "val", "")
  assert found == georouter.questions("val")


def test_a_teacher_behind_an_address(tmp_path, monkeypatch):
  monkeypatch.delenv(http_encoders.KEY, raising=False)
  kinds = {text: kind for kind, text in templates.STYLES["full"].system.items()}

  def say(system, user, body):
    assert (body["temperature"], body["top_p"]) == (1, 1)
    return script(kinds[system], user, body["temperature"])

  asked = list(map(question, ("good", "wrong", "thrice")))
  here, _ = walk(tmp_path / "here", *asked)
  with chatting(say) as (address, bodies):
    teacher = openai_policy.open_policy(address)
    there, _ = walk(tmp_path / "there", *asked, teacher=teacher)
    assert [f.outcomes for f in there] == [f.outcomes for f in here]
    assert [f.row and f.row["steps"] for f in there] == [
      f.row and f.row["steps"] for f in here
    ]
    assert {body.get("top_k") for body in bodies} == {20}
    count = len(bodies)
    walk(tmp_path / "there", *asked, teacher=teacher)
    assert len(bodies) == count
    # Examples are shown to the teacher, and are no part of rows.
    shown, _ = walk(
      tmp_path / "there",
      *asked,
      teacher=teacher,
      settings=dataclasses.replace(SETTINGS, few_shot=True),
    )
    assert [f.row and f.row["steps"] for f in shown] == [
      f.row and f.row["steps"] for f in here
    ]
    assert len(bodies) > count  # Those of before are another teacher's.
    assert all(
      (len(body["messages"]) > 2) == (i >= count)
      for i, body in enumerate(bodies)
    )


@pytest.mark.slow
def test_the_warm_start_teaches(tmp_path):
  """The shipped policy in the world: its rows are its own words."""
  kbs = {kb: kb_servers.world(kb) for kb in ("text", "image", "table")}
  known = {p.id for kb in kbs for p in georouter.passages(kb)[:80]}
  asked = [
    q
    for q in georouter.questions("train")
    if q.hops and all({*hop.evidence} & known for hop in q.hops)
  ][:8]
  teacher = openai_policy.open_policy("warm_start")
  assert len(asked) == 8 and isinstance(teacher, interface.Responder)
  found = synthesize.walk(
    teacher,
    kbs,
    asked,
    dataclasses.replace(SETTINGS, temperature=0.0, k=1),
    RULES,
    tmp_path,
    label=synthesize.label_of(teacher, kbs),
  )
  summary = output.write(tmp_path, found, 0, 0.0, {})
  assert summary["rows"]["train"] >= 2
  for row in read(tmp_path):
    for step in row.steps:
      assert sft_targets.demonstration(step) == step.response.replace("> ", ">")
