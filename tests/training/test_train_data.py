"""Steps that a policy cannot learn from are left out and named."""

import dataclasses
import json

import pytest
from PIL import Image

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Hop, Passage, Question, Step
from r1router_jax.data import georouter
from r1router_jax.policy import policy
from r1router_jax.training import train_data
from tests import fakes, tiny_policy
from tests.train_runs import make_run_config

KNOWN = dataclasses.replace(
  tiny_policy.POLICY_CONFIG, model=tiny_policy.TEXT_MODEL
)

TEXT_POLICY = policy.Policy(KNOWN, tiny_policy.TOKENIZER, {})

QUESTION = Question("q", "What is the capital of Chad?", ("N'Djamena",))

GOOD = Step("q/0", "final", QUESTION, answers=("N'Djamena",))

LONG_TEXT = "A word of Chad and Niger. " * 40


def test_shapes_are_the_padded_lengths():
  long = Step(
    "q/1",
    "answer",
    QUESTION,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "text", LONG_TEXT),),
  )
  kept, shapes = train_data.filter_trainable(TEXT_POLICY, [GOOD, long], "some")
  assert kept == [GOOD, long]  # Only passages are truncated to fit.
  assert shapes == [(24, 0, 12), (48, 0, 12)]


def test_passage_with_an_unreadable_image_is_named(caplog):
  vision_policy = policy.Policy(
    dataclasses.replace(tiny_policy.POLICY_CONFIG, passage_images=1),
    tiny_policy.TOKENIZER,
    {},
  )
  step = Step(
    "q/1",
    "answer",
    QUESTION,
    sub_question="Which one?",
    answers=("no",),
    passages=(Passage("p", "image", "x", "no.png"),),
  )
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.filter_trainable(
      vision_policy, [step, GOOD, step], "some.jsonl"
    )
  assert kept == [step, GOOD, step] and shapes[0] == (24, 0, 12)
  assert "some.jsonl: 2 images of passages are left out" in caplog.text
  assert "q/1: 'no.png'" in caplog.text


def test_gold_responses_that_are_cut_are_counted_and_named(caplog):
  known = dataclasses.replace(KNOWN, response_tokens=(40, 80))
  roomy = policy.Policy(known, tiny_policy.TOKENIZER, {})
  words = " ".join(f"word{n}" for n in range(80))
  long = dataclasses.replace(GOOD, id="q/1", answers=(words,))
  tokens = len(roomy.encode_target(train_data.sft_targets.sft_target(long)))
  with caplog.at_level("WARNING"):
    train_data.filter_trainable(roomy, [GOOD, GOOD], "mine")
    assert "gold responses" not in caplog.text
    kept, _ = train_data.filter_trainable(roomy, [GOOD, long, long], "mine")
  assert kept == [GOOD, long, long]
  assert "mine: 2 gold responses have more than 80 tokens" in caplog.text
  assert f"the first is q/1, of {tokens}: " in caplog.text


@pytest.mark.parametrize(
  "bad, message",
  [
    (
      dataclasses.replace(GOOD, id="q/7", answers=("",)),
      "q/7: the gold answer '' has no word. Give one",
    ),
    (dataclasses.replace(GOOD, id="q/7", answers=(" the ",)), "has no word"),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(QUESTION, text=LONG_TEXT)
      ),
      "q/7: .*prompt_tokens",
    ),
    (
      dataclasses.replace(
        GOOD, id="q/7", question=dataclasses.replace(QUESTION, image="a.png")
      ),
      "q/7: 'a.png': this policy reads texts alone",
    ),
  ],
)
def test_step_that_teaches_nothing_is_skipped_and_named(bad, message, caplog):
  with caplog.at_level("WARNING"):
    kept, shapes = train_data.filter_trainable(
      TEXT_POLICY, [bad, GOOD, bad], "some.jsonl"
    )
  assert kept == [GOOD] and len(shapes) == 1
  assert "some.jsonl: skipped 2 of 3" in caplog.text
  # Nothing but bad steps is an error.
  with pytest.raises(ValueError, match=f"some.jsonl: nothing.*{message}"):
    train_data.filter_trainable(TEXT_POLICY, [bad], "some.jsonl")


MARKED_POLICY = policy.Policy(
  dataclasses.replace(tiny_policy.MARKED_CONFIG, prompt_tokens=(48, 96)),
  tiny_policy.TOKENIZER,
  {},
)


@pytest.mark.parametrize("questions", ["", "georouter"])
def test_text_policy_learns_from_images_that_are_searched(questions, caplog):
  """Gold steps of GeoRouter, whose family none_visual searches nothing."""
  options = {"data.questions": questions, "data.split": "val"}
  config = make_run_config("sft", **options)
  with caplog.at_level("WARNING"):
    steps, shapes = train_data.load_train_data(config, MARKED_POLICY, {})
  pictured = {step.question.family for step in steps if step.question.image}
  assert pictured == {"image_1hop", "image_text_2hop", "image_table_2hop"}
  assert {images for _, images, _ in shapes} == {0}
  # Its 15 questions have a plan that stops and a final step.
  assert "skipped 30 of " in caplog.text
  assert "only the image itself has the answer" in caplog.text
  assert "such as Qwen/Qwen2.5-VL-3B-Instruct" in caplog.text
  # Without a marker no step with an image can be read.
  steps, _ = train_data.load_train_data(
    config, dataclasses.replace(MARKED_POLICY, config=LONG_KNOWN), {}
  )
  assert not any(step.question.image for step in steps if step.kind != "answer")


LONG_KNOWN = dataclasses.replace(KNOWN, prompt_tokens=(48, 96))


# ---- Questions.


def load(place, config_name="step_grpo", policy=TEXT_POLICY, **changes):
  """Load what a run with live retrieval learns from, by its answers alone."""
  options = {"data.questions": place, "data.kb_dir": "no/such/folder"}
  if config_name == "step_grpo":
    options |= {"step_grpo.rollout_mode": "online"}
    options |= {"step_grpo.credit": "trajectory", "step_grpo.reward": "em"}
  config = make_run_config(config_name, **options | changes)
  return config, train_data.load_train_data(config, policy, {})[0]


@pytest.mark.parametrize("credit", ["step", "trajectory"])
def test_questions_that_need_vision_are_not_asked(credit, caplog):
  reward = dict(step="default", trajectory="em")[credit]
  options = {"step_grpo.credit": credit, "step_grpo.reward": reward}
  options |= {"data.split": "val"}
  with caplog.at_level("WARNING"):
    _, kept = load("", policy=MARKED_POLICY, **options)
  _, all_questions = load("", **options)
  wanted = [q for q in all_questions if q.family != "none_visual"]
  assert kept == wanted and len(all_questions) - len(wanted) == 15
  assert "georouter: skipped 15 of 180" in caplog.text
  assert "only the image itself has the answer" in caplog.text


def write_questions(path, count=20, **parts):
  rows = [
    dict(question=f"Who is {i}?", answer="Ann", family="ab"[i % 2]) | parts
    for i in range(count)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_questions_of_families_and_a_random_share(tmp_path):
  path = write_questions(tmp_path / "shop.jsonl")
  families = {"data.families": ("b",)}
  _, every = load(path)
  _, some = load(path, **families)
  _, share = load(path, **families, **{"data.share": 0.3})
  assert len(every) == 20 and [q.family for q in some] == ["b"] * 10
  assert len(share) == 3 and set(share) < set(some) and share != some[:3]
  assert load(path, **families, **{"data.share": 0.3})[1] == share
  other = load(path, **families, **{"data.share": 0.3, "seed": 1})[1]
  assert len(other) == 3 and other != share
  # Those of GeoRouter are chosen the same way.
  some = georouter.load_questions("train")
  family = next(question.family for question in some if not question.image)
  _, found = load("georouter", **{"data.families": (family,)})
  assert {question.family for question in found} == {family}
  with pytest.raises(UserError, match="no questions of c, d.  Take of a, b"):
    load(path, **{"data.families": ("a", "c", "d")})


def test_question_that_cannot_be_read_is_skipped_and_named(tmp_path, caplog):
  rows = [
    dict(question=LONG_TEXT, answer="Ann"),
    dict(question="?", answer="the"),
  ]
  Image.new("L", (84, 84)).save(tmp_path / "a.png")
  rows += [dict(question="Who?", answer="Ann", image="a.png")]
  rows += [dict(question="Who?", answer="the", interval=[1, 2])]
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "a.jsonl").write_text(text)
  with caplog.at_level("WARNING"):
    _, (kept,) = load(str(tmp_path / "a.jsonl"))
  assert kept.id == "a/4"
  assert "skipped a/1: The plan prompt is" in caplog.text
  assert "skipped a/2: the gold answer 'the' has no word" in caplog.text
  assert "skipped a/3: " in caplog.text and "texts alone" in caplog.text


@pytest.mark.parametrize(
  "name, changes",
  [
    ("step_grpo", {"step_grpo.credit": "step", "step_grpo.reward": "default"}),
    ("sft", {}),
  ],
)
def test_gold_steps_want_hops(tmp_path, name, changes):
  path = write_questions(tmp_path / "a.jsonl")
  with pytest.raises(UserError, match="20 of 20 questions have no gold hops.*"):
    load(path, name, **changes)


def test_steps_of_own_questions_with_hops(tmp_path):
  hop = dict(sub_question="Who is it?", routes=["text"], answers=["Ann"])
  path = write_questions(tmp_path / "a.jsonl", 2, hops=[hop])
  options = {"data.questions": path, "data.kb_dir": "no/such/folder"}
  config = make_run_config("sft", **options)
  kbs = fakes.make_kbs()
  steps, _ = train_data.load_train_data(config, TEXT_POLICY, kbs)
  assert [step.kind for step in steps] == [
    "plan",
    "answer",
    "plan",
    "final",
  ] * 2
  assert steps[1].question.hops == (Hop("Who is it?", ("text",), ("Ann",)),)
  # Passages are found by the gold sub-question.
  assert "Who is it?" in steps[1].passages[0].text


def test_held_out_questions_are_of_no_training_slice(tmp_path):
  path = write_questions(tmp_path / "a.jsonl")
  slices = {"data.split": "train[:90%]", "validation.split": "train[90%:]"}
  config, learnt = load(path, **slices)
  held_out = train_data.load_held_out(config)
  assert len(held_out) == 2 and not {q.id for q in held_out} & {
    q.id for q in learnt
  }
  train_data.check_disjoint(learnt, held_out)
  with pytest.raises(UserError, match="1 of 2 held-out .*data.split='train"):
    train_data.check_disjoint([*learnt, held_out[0]], held_out)
  # By their names alone, the splits of a file are one.
  with pytest.raises(UserError, match="has no split 'val'"):
    train_data.load_held_out(load(path)[0])


def test_held_out_questions_of_a_file_of_their_own(tmp_path):
  other = write_questions(tmp_path / "b.jsonl", 3)
  path = write_questions(tmp_path / "a.jsonl")
  config, _ = load(path, **{"validation.questions": other})
  held_out = train_data.load_held_out(config)
  assert [question.id for question in held_out] == ["b/1", "b/2", "b/3"]
  config, _ = load("", **{"validation.questions": other})
  assert len(train_data.load_held_out(config)) == 3


def test_prepared_benchmark_is_one_split_by_its_name():
  with pytest.raises(
    UserError, match=r"webqa has no split 'train'.*test\[:90%"
  ):
    load("webqa")


def test_digest_is_that_of_what_examples_say_and_show(tmp_path):
  passages = (Passage("p", "text", "Chad is a land."),)

  def digest(folder="a", shade=0, shown=0, question=(), step=()):
    image, found = (tmp_path / folder / name for name in ("x.png", "y.png"))
    image.parent.mkdir(exist_ok=True)
    Image.new("L", (84, 84), shade).save(image)
    Image.new("L", (84, 84), shown).save(found)
    asked = dataclasses.replace(QUESTION, image=str(image), **dict(question))
    read = dataclasses.replace(passages[0], image=str(found))
    options = dict(question=asked, passages=(read,)) | dict(step)
    one = dataclasses.replace(GOOD, **options)
    packed = train_data.sequence_packing.PackedExample("p", (GOOD, one))
    examples = [one, packed] if step else [asked, one, packed]
    return [train_data.digest_examples([x]) for x in examples]

  # Another folder, and scores that are rounded in another way, are no change.
  assert digest() == digest("b")
  one, scored = (
    dict(passages=(dataclasses.replace(passages[0], score=score),))
    for score in (0.0, 0.5)
  )
  assert digest(step=one) == digest(step=scored)
  # The image of a passage is shown to some policies.
  assert digest(shown=9)[1:] != digest()[1:]
  # The ids stay those of the lines of a file, or of a knowledge base.
  for change in (
    dict(shade=9),
    dict(question=dict(text="Why?")),
    dict(question=dict(answers=("x",))),
    dict(step=dict(answers=("x",))),
    dict(step=dict(response="<think>so</think><answer>x</answer>")),
    dict(step=dict(history=(("Who?", "Ann"),))),
    dict(step=dict(passages=(Passage("p", "text", "Chad is a sea."),))),
  ):
    changed = digest(**change)
    for before, after in zip(digest()[-len(changed) :], changed, strict=True):
      assert before != after, change


def test_digest_takes_names_for_images_that_nobody_has_drawn():
  question = dataclasses.replace(QUESTION, image="domains/image/3")

  def digest(**changes):
    changed = dataclasses.replace(question, **changes)
    return train_data.digest_examples([changed])

  assert digest() == digest() != digest(text="Why?")
  assert digest() != digest(image="domains/image/4")


def load_domains(split, **changes):
  """Load gold steps of the grammar of domains, for a policy of texts."""
  options = {"data.questions": "domains", "data.generated": 30}
  options |= {"data.split": split}
  config = make_run_config("sft", **options, **changes)
  known = dataclasses.replace(
    KNOWN, prompt_tokens=(512,), image_marker="[picture]"
  )
  text_policy = policy.Policy(known, tiny_policy.TOKENIZER, {})
  return train_data.load_train_data(config, text_policy, {})[0]


def test_steps_of_the_grammar_are_those_of_its_split_and_seed():
  steps = load_domains("train")
  assert len({step.question.id for step in steps}) == 30
  # Questions with a picture, which is not drawn, are learnt from, too.
  assert any(step.question.image for step in steps)
  assert steps == load_domains("train")

  # A story's question may name nothing, and so be asked again of other names.
  def texts_of(some):
    asked = (step.question for step in some)
    return {q.text for q in asked if not q.family.startswith("story")}

  for others in (
    load_domains("val"),
    load_domains("test"),
    load_domains("train", seed=1),
  ):
    assert not texts_of(steps) & texts_of(others)
  with pytest.raises(UserError, match="no split 'dev'.*train, val, test"):
    load_domains("dev")


def test_invented_countries_are_trained_on():
  options = {"data.questions": "countries", "data.generated": 60}
  config = make_run_config("sft", **options)
  known = dataclasses.replace(KNOWN, prompt_tokens=(512,))
  sees = policy.Policy(known, tiny_policy.TOKENIZER, {})
  steps, shapes = train_data.load_train_data(config, sees, {})
  assert len(steps) == len(shapes) > 200
  assert {step.question.id.split("/")[0] for step in steps} == {"countries"}
  held_out = train_data.load_validation_steps(config, sees, {})
  train_data.check_disjoint(steps, held_out)
