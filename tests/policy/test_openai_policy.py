"""A model behind HTTP runs the routing loop as a policy in this process."""

import base64
import dataclasses
import json
import time

import jax
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common import http_client, images
from r1router_jax.common.records import Answer, Passage, Step
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.policy import openai_client, openai_policy, policy_factory
from r1router_jax.policy.config import PromptOptions
from r1router_jax.protocol import format, messages
from r1router_jax.protocol.templates import STYLES
from r1router_jax.routing import router
from r1router_jax.routing.router import RolloutOptions
from r1router_jax.routing.run_settings import RunSettings
from tests import fakes
from tests.fake_chat_server import make_completion, serve_chat
from tests.fakes import COLOUR, PEOPLE, ScriptedPolicy, good_script
from tests.raw_http_server import serve_raw
from tests.retrieval import kb_servers

KEY = jax.random.key(0)

KINDS = {text: kind for kind, text in STYLES["full"].system.items()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  # Read when a client is made.
  monkeypatch.setattr(openai_client, "DEADLINE_SECONDS", 20.0)
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))
  monkeypatch.delenv(http_client.API_KEY_VARIABLE, raising=False)


@pytest.fixture
def flag(tmp_path, monkeypatch):
  """The bytes of an image at the path that `PEOPLE` names."""
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (30, 20), "red").save("chad.png")
  return (tmp_path / "chad.png").read_bytes()


def say(system, user, body):
  """Return the response of the scripted policy."""
  return good_script(KINDS[system], user, body["temperature"])


def make_prompts(*texts):
  segments = [messages.Segment(text, "question") for text in texts]
  return [messages.Conversation("plan", "sys", (s,)) for s in segments]


def generate_one(answer):
  """Return the response that a server's answer becomes."""
  with serve_chat(lambda *_: answer) as (address, _):
    asked = policy_factory.open_policy(address)
    ((found,),) = asked.generate(make_prompts("a"), KEY)
  return found


def test_trajectories_equal_those_of_a_local_policy(flag):
  """The same script runs in this process and behind HTTP."""

  def run(policy):
    questions, options = [PEOPLE, COLOUR], RolloutOptions(k=2)
    return router.run_routing(policy, fakes.make_kbs(), questions, KEY, options)

  here = run(ScriptedPolicy(good_script))
  with serve_chat(say) as (address, bodies):
    there = run(policy_factory.open_policy(address))
  for ours, theirs in zip(here, there, strict=True):
    assert dataclasses.replace(ours, tokens=theirs.tokens) == theirs
  assert [t.tokens for t in there] == [6 * 7, 2 * 7]  # As the server counts.
  # One request for each response, all greedy.
  assert len(bodies) == 8 and all(body["temperature"] == 0 for body in bodies)


def test_prompts_and_images_arrive_unchanged(flag):
  shown = Passage("image/0", "image", "a flag", "chad.png")
  broken = Passage("image/1", "image", "a map", "missing.png")
  more = dict(sub_question="Which?", passages=(broken, shown))
  step = Step("s", "answer", PEOPLE, **more)
  options = PromptOptions(passage_images=2)
  with serve_chat(lambda *_: "x") as (address, bodies):
    seeing = openai_policy.OpenAIPolicy(address, options)
    conversation = seeing.config.build_prompt(step)
    assert len(conversation.images) == 3
    (reason,) = seeing.processor.encode(conversation).unread_images
    seeing.generate([conversation], KEY)
  # The passage's image is left out, with a reason.
  assert "missing.png" in reason
  ((system, user),) = [body["messages"] for body in bodies]
  assert system["content"] == STYLES["full"].system["answer"]
  parts = user["content"]
  assert [part["type"] for part in parts] == ["text", "image_url"] * 2
  # The order of the prompt, less the picture that is not there.
  assert parts[0]["text"].endswith("tir-0: a map\ntir-1: a flag")
  assert parts[2]["text"].endswith("Question: which?")
  for part in parts[1::2]:
    head, data = part["image_url"]["url"].split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == flag


def test_model_of_texts_is_sent_a_marker(flag, tmp_path):
  options = PromptOptions(image_marker="[picture]")
  with serve_chat(say) as (address, bodies):
    asked = openai_policy.OpenAIPolicy(address, options)
    (found,) = router.run_routing(asked, fakes.make_kbs(), [PEOPLE], KEY)
    # The image is not sent, but searched by, so that it must be good.
    (tmp_path / "chad.png").write_bytes(flag[:60])
    (broken,) = router.run_routing(asked, fakes.make_kbs(), [PEOPLE], KEY)
  assert [r.plan.routes for r in found.rounds] == [("image",), ("table",)]
  assert found.final == Answer("because", "18 million") and not found.faults
  turns = [body["messages"][-1]["content"] for body in bodies]
  assert len(turns) == 6 and all(t.endswith("[picture]") for t in turns)
  assert broken.faults[0].startswith("input: 'chad.png'")


def test_examples_are_sent_as_turns():
  with serve_chat(lambda *_: "x") as (address, bodies):
    (bare,), pairs = make_prompts("who?"), (("a", "b"), ("c", "d"))
    conversation = dataclasses.replace(bare, examples=pairs)
    policy_factory.open_policy(address).generate([conversation], KEY)
  (asked,) = [body["messages"] for body in bodies]
  roles = ["system", *["user", "assistant"] * 2, "user"]
  assert [turn["role"] for turn in asked] == roles
  said = ["sys", "a", "b", "c", "d", "who?"]
  assert [turn["content"] for turn in asked] == said


def test_bad_image_of_a_question_is_rejected(tmp_path, flag):
  with serve_chat(say) as (address, bodies):
    asked = policy_factory.open_policy(address)
    # A file that ends too early, which only decoding notices.
    (tmp_path / "chad.png").write_bytes(flag[:60])
    prompt = asked.config.build_prompt(Step("", "plan", PEOPLE))
    with pytest.raises(images.BadImage, match="chad.png"):
      asked.processor.encode(prompt)
    found = router.run_routing(asked, fakes.make_kbs(), [PEOPLE, COLOUR], KEY)
  assert found[0].faults[0].startswith("input: 'chad.png'")
  assert found[1].final == Answer("because", "green") and len(bodies) == 2


# What servers say of themselves, and whether they are known to take top_k.
MODELS = [
  (dict(data=[dict(id="some-model", owned_by="vllm")]), True),
  (dict(data=[dict(id="a"), dict(id="some-model", owned_by="llamacpp")]), True),
  (dict(data=[dict(id="some-model", owned_by="openai")]), False),
  (dict(data=[dict(id="some-model", owned_by=["vllm"])]), False),
  (dict(data=["vllm"]), False),
  (dict(models=[]), False),
  ([1], False),
]


@pytest.mark.parametrize("models, takes_top_k", MODELS)
def test_only_standard_arguments_are_sent_to_unknown_servers(
  models, takes_top_k, caplog
):
  with serve_chat(lambda *_: "x", models=models) as (address, bodies):
    asked = policy_factory.open_policy(address)
    sampling = SamplingParams(1.0, top_k=20)
    asked.generate(make_prompts("a"), KEY, 1, sampling, stop=("END",))
  standard = "model messages temperature top_p max_tokens seed stop".split()
  assert {*bodies[0]} - {*standard} == ({"top_k"} if takes_top_k else set())


def test_sampling_parameters_are_sent():
  with serve_chat(lambda *_: "x", models=MODELS[0][0]) as (address, bodies):
    asked = policy_factory.open_policy(address)
    request = make_prompts("a"), KEY, 1
    asked.generate(*request, SamplingParams(1.0, top_k=20), stop=("END",))
    asked.generate(*request, GREEDY)
    with pytest.raises(ValueError, match="top_p is 2"):
      asked.generate(*request, SamplingParams(top_p=2.0))
  sent = dict(temperature=1, top_p=1, top_k=20, stop=["END"], max_tokens=2048)
  assert bodies[0] == bodies[0] | sent
  assert bodies[1]["temperature"] == 0
  # Fields that other servers may not know are left out.
  assert not {"top_k", "stop", "n"} & bodies[1].keys()


def test_response_depends_on_key_prompt_and_member_only():
  def say_seed(system, user, body):
    return f"{user} {body['seed']}"

  with serve_chat(say_seed) as (address, _):
    asked = policy_factory.open_policy(address)

    def generate(texts, key=KEY, size=3):
      prompts, params = make_prompts(*texts), SamplingParams()
      groups = asked.generate(prompts, key, size, params)
      said = [[response.text for response in group] for group in groups]
      return dict(zip(texts, said, strict=True))

    many = [f"q{i}" for i in range(40)]
    # Order, size of the group and other prompts make no difference.
    found = generate(many)
    assert generate(many[::-1]) == found
    assert generate(["q7"], size=2)["q7"] == found["q7"][:2]
    assert len({text for group in found.values() for text in group}) == 120
    assert not {*generate(many, jax.random.key(1))["q7"]} & {*found["q7"]}
    seeds = [int(text.split()[1]) for group in found.values() for text in group]
  assert all(0 <= seed < 1 << 31 for seed in seeds)


# A count that cannot be used costs nothing but itself.
USELESS = None, -1, 1 << 30, 10**400, "x", [3]


@pytest.mark.parametrize(
  "usage, tokens",
  [
    *((dict(completion_tokens=count), int(count)) for count in (5, 3.0, "3")),
    *((dict(completion_tokens=count), 0) for count in USELESS),
    *((usage, 0) for usage in (None, {}, [1])),
  ],
)
def test_tokens_are_counted(usage, tokens):
  found = generate_one(dict(make_completion("a"), usage=usage))
  assert (found.text, len(found.tokens)) == ("a", tokens)
  assert np.isnan(found.logp).all()


def test_content_in_parts_is_joined():
  parts = [dict(type="text", text="a"), dict(type="refusal"), "b"]
  parts += [dict(type="text", text=None), dict(type="output_text", text="c")]
  parts += [dict(type="reasoning", text="thoughts"), dict(text="\ud83d")]
  found = generate_one(make_completion(parts))
  assert found.text == "abc\ufffd"


PLAN = "<sub-question>Who?</sub-question><ret>Text Retriever</ret>"


@pytest.mark.parametrize(
  "said, apart",
  [
    (PLAN, dict(reasoning_content="a\n<b> <ret>")),
    (PLAN, dict(reasoning="a <b> <ret>")),
    (f"a <b> <ret>\n</think>\n\n{PLAN}", {}),
    (f"<think>a <b> ‹ret></think>{PLAN}", {}),
    (f"<think>a <b> ‹ret></think>{PLAN}", dict(reasoning_content="dropped")),
    (f"dropped</think> <think>a <b> ‹ret></think>{PLAN}", {}),
  ],
)
def test_reasoning_becomes_the_thought(said, apart):
  found = generate_one(make_completion(said, **apart))
  plan = format.parse_plan(found.text)
  assert plan.thought == "a <b> ‹ret>"
  assert (plan.sub_question, plan.routes) == ("Who?", ("text",))


WRONG = {
  "no object": [],
  "no choice": dict(choices=[]),
  "two choices": dict(choices=make_completion("a")["choices"] * 2),
  "no message": dict(choices=[dict(text="a")]),
  "no text": make_completion(5),
  "thoughts": make_completion("a", reasoning_content=3),
  "an endless text": make_completion("a" * 2_200_000),
  "half": b'{"choices": [',
}


@pytest.mark.parametrize("name", WRONG)
def test_unusable_answer_is_an_error_only_at_first(name, caplog):
  def break_some(number, body):
    return (200, WRONG[name]) if "odd" in json.dumps(body) else None

  with serve_chat(lambda *_: "x", break_some) as (address, bodies):
    asked = policy_factory.open_policy(address)
    with pytest.raises(http_client.RemoteServiceError, match="at try 3 "):
      asked.generate(make_prompts("odd"), KEY)
    assert len(bodies) == 3
    found = asked.generate(make_prompts("odd", "a"), KEY)
  assert [group[0].text for group in found] == ["", "x"]
  assert "1 of 2 replies are empty (1 so far)" in caplog.text


def test_refused_prompt_does_not_affect_others(caplog):
  def refuse_long(number, body):
    return (400, dict(error="too long")) if "long" in json.dumps(body) else None

  with serve_chat(lambda *_: "x", refuse_long) as (address, _):
    asked = policy_factory.open_policy(address)
    # Nothing was answered before.
    with pytest.raises(http_client.RemoteServiceError, match="400.*too long"):
      asked.generate(make_prompts("long"), KEY)  # The server may refuse all.
    found = asked.generate(make_prompts("a", "long", "b"), KEY)
    assert [group[0].text for group in found] == ["x", "", "x"]
    assert "1 of 3 replies are empty" in caplog.text
    assert asked.generate(make_prompts("long"), KEY)[0][0].text == ""


def test_wrong_address_model_or_key_is_named(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 3.0)
  with pytest.raises(ValueError, match="names no model"):
    policy_factory.open_policy("openai:http://127.0.0.1:9/v1")
  with pytest.raises(http_client.RemoteServiceError, match="127.0.0.1:9"):
    policy_factory.open_policy("openai:http://127.0.0.1:9/v1#m")
  refusal = 401, dict(error="no key")
  with kb_servers.serve_answers(lambda *_: refusal) as address:
    with pytest.raises(http_client.RemoteServiceError, match="401.*no key"):
      policy_factory.open_policy(f"openai:{address}#m")


def test_hanging_server_is_an_error_at_start(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 0.6)
  with serve_raw(lambda *_: time.sleep(3)) as (address, _):
    with pytest.raises(http_client.RemoteServiceError, match="no whole answer"):
      policy_factory.open_policy(f"openai:{address}/v1#m")


def test_other_names_are_local_policies():
  with pytest.raises(FileNotFoundError, match="no folder no/policy"):
    policy_factory.open_policy("no/policy")


def test_fingerprint_is_name_and_options():
  with serve_chat(say) as (address, _):
    plain = policy_factory.open_policy(address)
    wide = openai_policy.OpenAIPolicy(address, PromptOptions(max_routes=2))
  assert policy_factory.fingerprint(plain) == "openai:some-model"
  assert policy_factory.fingerprint(wide) == "openai:some-model routes=2"


def test_routing_loop_answers_with_it():
  options = RunSettings("r1_router").rollout_options()
  with serve_chat(say) as (address, _):
    asked = policy_factory.open_policy(address)
    task = asked, fakes.make_kbs(), [COLOUR], KEY, options
    (found,) = router.run_routing(*task)
  assert found.final.text == "green" and found.question == COLOUR


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "MPO"])
def test_images_are_sent_by_their_own_kind(tmp_path, kind):
  more = dict(save_all=True, append_images=[Image.new("RGB", (8, 8))])
  path = tmp_path / "p"
  options = more if kind == "MPO" else {}
  Image.new("RGB", (8, 8)).save(path, kind, **options)
  url = openai_policy._data_url(str(path), None)
  sent = "jpeg" if kind == "MPO" else kind.lower()
  assert url.startswith(f"data:image/{sent};base64,")
