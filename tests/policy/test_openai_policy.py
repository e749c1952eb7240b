"""A model behind HTTP walks the routing loop as a policy in this process."""

import base64
import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from r1router_jax import ask
from r1router_jax.common import http_client, images
from r1router_jax.common.records import Answer, Passage, Question, Step
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.policy import openai_client, openai_policy
from r1router_jax.protocol import format, messages
from r1router_jax.protocol.templates import STYLES
from r1router_jax.retrieval.encoders import http_encoders
from r1router_jax.routing import router
from tests import fakes
from tests.fake_chat_server import chatting, completion
from tests.retrieval import kb_servers
from tests.routing.test_router import COLOUR, PEOPLE, gold

KEY = jax.random.key(0)

KINDS = {text: kind for kind, text in STYLES["full"].system.items()}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(openai_client, "DEADLINE", 20.0)
  monkeypatch.setattr(http_client, "PAUSES", (0.01, 0.05))
  monkeypatch.delenv(http_encoders.KEY, raising=False)


@pytest.fixture
def flag(tmp_path, monkeypatch):
  """A picture at the path that `PEOPLE` names."""
  monkeypatch.chdir(tmp_path)
  Image.new("RGB", (30, 20), "red").save("chad.png")
  return (tmp_path / "chad.png").read_bytes()


def say(system, user, body):
  """The script of the policy in test_router."""
  return gold(KINDS[system], user, body["temperature"])


def prompts(*texts, kind="plan"):
  return [
    messages.Conversation(kind, "sys", (messages.Segment(text, "question"),))
    for text in texts
  ]


def test_the_loop_is_that_of_a_policy_here(flag):
  here = router.route(
    fakes.Scripted(gold), fakes.kbs(), [PEOPLE, COLOUR], KEY, k=2
  )
  with chatting(say) as (address, bodies):
    there = router.route(
      openai_policy.open_policy(address),
      fakes.kbs(),
      [PEOPLE, COLOUR],
      KEY,
      k=2,
    )
  assert [dataclasses.replace(t, tokens=0) for t in there] == [
    dataclasses.replace(t, tokens=0) for t in here
  ]
  assert [t.tokens for t in there] == [6 * 7, 2 * 7]  # As the server counts.
  assert len(bodies) == 8 and all(body["temperature"] == 0 for body in bodies)


def test_prompts_and_pictures_arrive_as_they_are(flag):
  shown = Passage("image/0", "image", "a flag", "chad.png")
  broken = Passage("image/1", "image", "a map", "missing.png")
  step = Step(
    "s", "answer", PEOPLE, sub_question="Which?", passages=(broken, shown)
  )
  with chatting(lambda *of: "x") as (address, bodies):
    seeing = openai_policy.ChatPolicy(
      address, openai_policy.Asking(passage_pictures=2)
    )
    conversation = seeing.settings.conversation(step)
    assert len(conversation.pictures) == 3
    (reason,) = seeing.packer.encode(conversation).unread
    seeing.generate([conversation], KEY)
  assert "missing.png" in reason
  ((system, user),) = [body["messages"] for body in bodies]
  assert system["content"] == STYLES["full"].system["answer"]
  parts = user["content"]
  assert [part["type"] for part in parts] == [
    "text",
    "image_url",
    "text",
    "image_url",
  ]
  # The order of the prompt, less the picture that is not there.
  assert parts[0]["text"].endswith("tir-0: a map\ntir-1: a flag")
  assert parts[2]["text"].endswith("Question: which?")
  for part in parts[1::2]:
    head, data = part["image_url"]["url"].split(",")
    assert head == "data:image/png;base64" and base64.b64decode(data) == flag


def test_examples_are_turns_of_the_dialogue():
  with chatting(lambda *of: "x") as (address, bodies):
    conversation = dataclasses.replace(
      *prompts("who?"), examples=(("a", "b"), ("c", "d"))
    )
    openai_policy.open_policy(address).generate([conversation], KEY)
  (asked,) = [body["messages"] for body in bodies]
  assert [(turn["role"], turn["content"]) for turn in asked] == [
    ("system", "sys"),
    ("user", "a"),
    ("assistant", "b"),
    ("user", "c"),
    ("assistant", "d"),
    ("user", "who?"),
  ]


def test_a_picture_of_the_question_must_be_good(tmp_path, flag):
  with chatting(say) as (address, bodies):
    asked = openai_policy.open_policy(address)
    (tmp_path / "chad.png").write_bytes(flag[:60])
    with pytest.raises(images.BadImage, match="chad.png"):
      asked.packer.encode(asked.settings.conversation(Step("", "plan", PEOPLE)))
    found = router.route(asked, fakes.kbs(), [PEOPLE, COLOUR], KEY)
  assert found[0].faults[0].startswith("input: 'chad.png'")
  assert found[1].final == Answer("because", "green") and len(bodies) == 2


def test_how_tokens_are_drawn_is_said():
  with chatting(lambda *of: "x") as (address, bodies):
    asked = openai_policy.open_policy(address)
    asked.generate(
      prompts("a"), KEY, 1, SamplingParams(1.0, top_k=20), stop=("END",)
    )
    asked.generate(prompts("a"), KEY, 1, GREEDY)
    with pytest.raises(ValueError, match="top_p is 2"):
      asked.generate(prompts("a"), KEY, 1, SamplingParams(top_p=2.0))
  assert (
    bodies[0].items()
    >= dict(
      temperature=1, top_p=1, top_k=20, stop=["END"], max_tokens=2048
    ).items()
  )
  assert bodies[1]["temperature"] == 0
  assert not {"top_k", "min_p", "stop", "n"} & bodies[1].keys()


def by_seed(system, user, body):
  return f"{user} {body['seed']}"


def test_a_response_depends_on_key_prompt_and_member_alone():
  with chatting(by_seed) as (address, _):
    asked = openai_policy.open_policy(address)
    respond = lambda texts, key=KEY, n=3: {
      text: [one.text for one in group]
      for text, group in zip(
        texts,
        asked.generate(prompts(*texts), key, n, SamplingParams()),
        strict=True,
      )
    }
    many = [f"q{i}" for i in range(40)]
    found = respond(many)
    assert respond(many[::-1]) == found
    assert respond(["q7"], n=2)["q7"] == found["q7"][:2]
    assert len({text for group in found.values() for text in group}) == 120
    assert not {*respond(many, jax.random.key(1))["q7"]} & {*found["q7"]}
    seeds = [int(text.split()[1]) for group in found.values() for text in group]
  assert all(0 <= seed < 1 << 31 for seed in seeds)


def test_tokens_are_counted():
  answers = iter([completion("a", 5), dict(completion("b"), usage=None)])
  with chatting(lambda *of: next(answers)) as (address, _):
    asked = openai_policy.open_policy(address)
    one, two = (asked.generate(prompts("a"), KEY)[0][0] for _ in range(2))
  assert len(one.tokens) == 5 and np.isnan(one.logp).all()
  assert (two.text, len(two.tokens)) == ("b", 0)


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
def test_what_a_reasoning_model_thinks_is_its_thought(said, apart):
  with chatting(lambda *of: completion(said, **apart)) as (address, _):
    ((found,),) = openai_policy.open_policy(address).generate(prompts("a"), KEY)
  plan = format.parse_plan(found.text)
  assert (plan.thought, plan.sub_question, plan.route) == (
    "a <b> ‹ret>",
    "Who?",
    "text",
  )


def test_not_now_is_waited_for():
  wait = lambda number, body: (429, dict(error="slow")) if number < 3 else None
  with chatting(lambda *of: "x", wait) as (address, bodies):
    ((found,),) = openai_policy.open_policy(address).generate(prompts("a"), KEY)
  assert found.text == "x" and len(bodies) == 3 and bodies[0] == bodies[2]


def test_many_are_in_flight_and_not_more(monkeypatch):
  monkeypatch.setattr(openai_client, "IN_FLIGHT", 3)
  lock, now, most = threading.Lock(), [0], [0]

  def slow(*of):
    with lock:
      now[0] += 1
      most[0] = max(most[0], now[0])
    time.sleep(0.05)
    with lock:
      now[0] -= 1
    return "x"

  with chatting(slow) as (address, _):
    openai_policy.open_policy(address).generate(
      prompts(*map(str, range(12))), KEY
    )
  assert most == [3]


WRONG = {
  "no object": [],
  "no choice": dict(choices=[]),
  "two choices": dict(choices=completion("a")["choices"] * 2),
  "no message": dict(choices=[dict(text="a")]),
  "no text": completion(["a"]),
  "thoughts": completion("a", reasoning_content=3),
  "tokens": completion("a", -1),
  "many tokens": completion("a", 1 << 30),
  "half": b'{"choices": [',
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_an_error(name):
  with chatting(None, lambda *of: (200, WRONG[name])) as (address, bodies):
    with pytest.raises(http_client.RetrievalError, match="at try 3 "):
      openai_policy.open_policy(address).generate(prompts("a"), KEY)
  assert len(bodies) == 3


def test_a_prompt_that_is_refused_harms_no_other(caplog):
  long = lambda number, body: (
    (400, dict(error="too long")) if ("long" in json.dumps(body)) else None
  )
  with chatting(lambda *of: "x", long) as (address, _):
    asked = openai_policy.open_policy(address)
    with pytest.raises(http_client.RetrievalError, match="400.*too long"):
      asked.generate(prompts("long"), KEY)  # It may refuse all of ours.
    found = asked.generate(prompts("a", "long", "b"), KEY)
    assert [group[0].text for group in found] == ["x", "", "x"]
    assert "1 of 3 prompts are refused" in caplog.text
    assert asked.generate(prompts("long"), KEY)[0][0].text == ""


def test_what_the_user_can_put_right():
  with pytest.raises(ValueError, match="names no model"):
    openai_policy.open_policy("openai:http://127.0.0.1:9/v1")
  with pytest.raises(http_client.RetrievalError, match="127.0.0.1:9"):
    openai_policy.open_policy("openai:http://127.0.0.1:9/v1#m")
  denied = lambda path, body: (401, dict(error="no key"))
  with (
    kb_servers.answering(denied) as address,
    pytest.raises(http_client.RetrievalError, match="401.*no key"),
  ):
    openai_policy.open_policy(f"openai:{address}#m")


def test_other_names_are_policies_of_ours():
  with pytest.raises(FileNotFoundError, match="no folder no/policy"):
    openai_policy.open_policy("no/policy")


def test_a_model_is_known_by_name_and_options():
  with chatting(say) as (address, _):
    plain = openai_policy.fingerprint(openai_policy.open_policy(address))
    wide = openai_policy.fingerprint(
      openai_policy.ChatPolicy(address, openai_policy.Asking(routes=2))
    )
  assert (plain, wide) == ("openai:some-model", "openai:some-model routes=2")


def test_one_question_is_asked_of_it():
  with chatting(say) as (address, _):
    found = ask.ask(
      openai_policy.open_policy(address), fakes.kbs(), COLOUR.text
    )
  assert found.final.text == "green" and found.question == Question(
    "question", COLOUR.text
  )
