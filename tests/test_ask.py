import jax
import pytest
from absl.testing import flagsaver
from PIL import Image

from r1router_jax import ask
from r1router_jax.common.records import Answer, Plan, Question
from r1router_jax.policy import image_questions
from r1router_jax.policy import policy as policy_lib
from r1router_jax.protocol import format
from r1router_jax.report import terminal
from r1router_jax.routing import router
from r1router_jax.routing.run_settings import RunSettings
from tests import fakes, tiny_policy


def write_response(kind, prompt, temperature):
  """Asks the text knowledge base once, and answers "Chad"."""
  if kind == "plan" and "Answer1" not in prompt:
    return format.render_plan(Plan("hm", "Who?\x1b[31m", ("text",)))
  if kind == "plan":
    return format.render_plan(Plan("", "None", ()))
  if kind == "answer":
    return "no tags\u202e"
  return format.render_answer(Answer("", "Chad"))


# The question has no image unless a test gives one.
def answer(script=write_response, *, image="", method="r1_router", **options):
  policy = fakes.ScriptedPolicy(script, **options)
  task = fakes.make_kbs(), [Question("question", "Where?", image=image)]
  options = RunSettings(method).rollout_options()
  (found,) = router.run_routing(policy, *task, jax.random.key(0), options)
  return found


def test_trajectory_is_printed_without_control_characters():
  lines = terminal.format_trajectory(answer()).splitlines()
  assert lines[:3] == ["Question   Where?", "", "Round 1    Text Retriever"]
  assert lines[3:6] == [
    "  thinks   hm",
    "  asks     Who?",
    "  finds    [1.00] text on Who?",
  ]
  assert lines[-1] == "Answer     Chad"
  assert lines[-2].startswith("Fault      answer: tags are none")
  assert "  answers  no tags (malformed: tags are none" in "\n".join(lines)
  assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("method", ["r1_router", "rag_text", "direct"])
def test_lines_are_printed_as_soon_as_they_are_known(method, capsys):
  printed, last = "", []

  def note_printed(kind, prompt, temperature):
    nonlocal printed
    printed += capsys.readouterr().out
    last.append(printed.splitlines()[-1].split()[0])
    return write_response(kind, prompt, temperature)

  question = Question("question", "Where?")
  printer = terminal.TrajectoryPrinter(question)
  task = fakes.ScriptedPolicy(note_printed), fakes.make_kbs(), [question]
  options = RunSettings(method).rollout_options(on_part=printer.print_part)
  (found,) = router.run_routing(*task, jax.random.key(0), options)
  printer.print_final(found)
  printed += capsys.readouterr().out
  assert printed == terminal.format_trajectory(found) + "\n"
  # What stood last before each response: of an answer, the id of its passage.
  expected = dict(
    r1_router=["Question", "text/0", "text/0", "answers", "answers"],
    rag_text=["answers"],
    direct=["Question"],
  )
  assert last == expected[method]


def test_all_routes_of_a_plan_are_printed():
  def name_two_routes(kind, prompt, temperature):
    if kind == "plan" and "Answer1" not in prompt:
      return format.render_plan(Plan("", "Who?", ("table", "text")))
    return write_response(kind, prompt, temperature)

  lines = terminal.format_trajectory(answer(name_two_routes, max_routes=2))
  assert "Round 1    Table Retriever, Text Retriever\n" in lines


def test_baseline_method_answers():
  found = answer(lambda *_: "Lake Chad", method="rag_text")
  assert found.final.text == "Lake Chad" and len(found.rounds) == 1


def test_unreadable_image_is_printed():
  lines = terminal.format_trajectory(answer(image="missing.png")).splitlines()
  assert "Image      missing.png" in lines
  assert "Fault      input: missing.png does not exist." in lines
  assert lines[-1].startswith("Answer     (malformed: missing.png")


def test_policy_of_texts_says_what_it_does_with_an_image(
  kbs, tmp_path, parsed_flags, capsys
):
  config, folder = tiny_policy.MARKED_CONFIG, str(tmp_path / "policy")
  policy_lib.init_policy(config, tiny_policy.TOKENIZER, 0).save(folder)
  image = str(tmp_path / "flag.png")
  Image.new("RGB", (30, 20), "red").save(image)

  def ask_about(image):
    flags = dict(question="Whose flag?", policy=folder, kb_dir=str(kbs))
    with flagsaver.flagsaver(**flags, image=image):
      ask.main([])
    return capsys.readouterr().out

  assert image_questions.CAPTIONS_ALONE in ask_about(image).splitlines()
  assert "Qwen/Qwen2.5-VL-3B-Instruct" in image_questions.CAPTIONS_ALONE
  assert image_questions.CAPTIONS_ALONE not in ask_about("")


def test_policy_that_the_hub_does_not_have_is_rejected(parsed_flags):
  """Other wrong options are those of tests/common/test_cli.py."""
  # The name could be an id on the hub, which is therefore asked.
  with flagsaver.flagsaver(question="Who?", image="", policy="no/policy"):
    with pytest.raises(FileNotFoundError, match="no folder no/policy"):
      ask.main([])
