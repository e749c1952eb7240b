"""A policy's folder; responses that do not depend on their batch."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.generation import token_sampling
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import hf_checkpoint, safetensors_io
from r1router_jax.policy import config, policy
from r1router_jax.protocol import messages, prompts
from tests import tiny_policy


@pytest.fixture(scope="module")
def made():
  return policy.Policy(
    tiny_policy.SETTINGS,
    tiny_policy.TOKENIZER,
    tiny_policy.params(tiny_policy.SPOKEN),
  )


def ask(text, image=""):
  return prompts.plan_conversation(text, image, (), style="compact")


WARM = token_sampling.SamplingParams()  # Temperature 1.

ASKED = [ask("Who rules Chad?"), ask("And Niger?"), ask("How long is it?")]


def same(got, wanted):
  for ours, theirs in zip(got, wanted, strict=True):
    for one, other in zip(ours, theirs, strict=True):
      assert one.text == other.text
      np.testing.assert_array_equal(one.tokens, other.tokens)
      np.testing.assert_allclose(one.logp, other.logp, atol=1e-4)


def test_a_saved_policy_responds_alike(made, tmp_path):
  wanted = made.generate(ASKED, jax.random.key(0), n=2, method=WARM)
  assert [len(group) for group in wanted] == [2, 2, 2]
  made.save(tmp_path / "policy")
  assert {p.name for p in (tmp_path / "policy").iterdir()} == {
    "config.json",
    "model.safetensors",
    "policy.json",
    "tokenizer.json",
  }
  again = policy.load(tmp_path / "policy")
  assert again.settings == made.settings
  jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
  same(again.generate(ASKED, jax.random.key(0), n=2, method=WARM), wanted)
  # Saving a policy where it lies keeps its tokenizer.
  again.save(tmp_path / "policy")
  assert policy.load(tmp_path / "policy").packer.tokenizer.size == 4096


@pytest.mark.parametrize("asked", [ASKED[:1], ASKED[:2]])
def test_greedy_members_are_alike(made, asked):
  """Also those of a lone prompt, see `layers.product`."""
  for group, (alone,) in zip(
    made.generate(asked, jax.random.key(0), n=3),
    made.generate(asked, jax.random.key(0)),
    strict=True,
  ):
    same([group], [[alone] * 3])


def test_a_response_does_not_depend_on_the_batch(made):
  together = made.generate(ASKED, jax.random.key(0), n=2, method=WARM)
  for i in (2, 0):
    alone = made.generate(ASKED[i : i + 1], jax.random.key(0), n=2, method=WARM)
    same(alone, together[i : i + 1])
  many = made.generate(ASKED * 7, jax.random.key(0), n=2, method=WARM)
  same(many, together * 7)


def test_text_and_logp_belong_to_the_tokens(made):
  tokenizer = made.packer.tokenizer
  for group in made.generate(ASKED, jax.random.key(1), n=2, method=WARM):
    for response in group:
      assert len(response.tokens) == len(response.logp) <= 12
      assert response.text == tokenizer.decode(response.tokens)
      assert (response.logp <= 0).all()
      assert (response.tokens[:-1] != tokenizer.end).all()


def test_pictures_may_be_mixed_with_text(made, tmp_path):
  path = str(tmp_path / "p.png")
  pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  asked = [ASKED[0], ask("What is it?", path)]
  text, picture = made.generate(asked, jax.random.key(0), n=2, method=WARM)
  same([text], made.generate(ASKED[:1], jax.random.key(0), 2, WARM))
  assert len(picture) == 2


def test_two_pictures_in_a_prompt(made, tmp_path):
  """Each is seen, in its place, and alone as beside other prompts."""
  paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
  rng = np.random.default_rng(0)
  for path in paths:
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  seeing = dataclasses.replace(
    made, settings=dataclasses.replace(made.settings, passage_pictures=2)
  )
  ask = lambda *shown: seeing.settings.conversation(
    Step(
      "q",
      "answer",
      Question("q", "?"),
      sub_question="Who?",
      passages=tuple(
        Passage(f"{n}", "image", "a flag", path) for n, path in enumerate(shown)
      ),
    )
  )
  asked = [
    ask(*paths[:2]),
    ask(paths[1], paths[0]),
    ask(paths[0], paths[2]),
    ask(paths[0]),
  ]
  assert [len(each.pictures) for each in asked] == [2, 2, 2, 1]
  together = seeing.generate(asked, jax.random.key(0), 2, WARM)
  for i in (0, 3):
    same(
      seeing.generate(asked[i : i + 1], jax.random.key(0), 2, WARM),
      together[i : i + 1],
    )
  # The same tokens are drawn with the same noise: what differs was seen.
  first = [group[0].logp[0] for group in together[:3]]
  assert len({round(float(logp), 4) for logp in first}) == 3


def test_no_conversations_no_responses(made):
  assert made.generate([], jax.random.key(0)) == []


def test_a_question_that_does_not_fit_is_refused(made):
  with pytest.raises(PromptTooLong, match="over the limit of 48"):
    made.generate([ask("who " * 60)], jax.random.key(0))


@pytest.mark.parametrize(
  "name, error",
  [
    ("config.json", hf_checkpoint.BadConfig),
    ("model.safetensors", safetensors_io.BadWeights),
    ("tokenizer.json", FileNotFoundError),
  ],
)
def test_a_missing_file_is_named(made, tmp_path, name, error):
  made.save(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(error, match=name):
    policy.load(tmp_path)


def test_a_folder_that_is_not_there_is_named():
  with pytest.raises(FileNotFoundError, match="no folder nowhere"):
    policy.load("nowhere")
  with pytest.raises(FileNotFoundError, match="no/where, and the hub gives no"):
    policy.load("no/where")


@pytest.mark.slow
def test_a_published_checkpoint_is_a_policy(made, tmp_path):
  """A folder without `policy.json`: the paper's prompts, in bfloat16."""
  made.save(tmp_path)
  (tmp_path / "policy.json").unlink()
  opened = policy.load(tmp_path)
  assert opened.settings.style == "full"
  assert opened.params["embed"].dtype == jnp.bfloat16
  short = dataclasses.replace(
    opened,
    settings=dataclasses.replace(
      opened.settings, response_tokens=(6,), batch_rows=1
    ),
  )
  path = str(tmp_path / "p.png")
  Image.new("RGB", (40, 30), "red").save(path)
  (group,) = short.generate(
    [prompts.plan_conversation("Whose flag is this?", path, (), style="full")],
    jax.random.key(0),
  )
  assert 1 <= len(group[0].tokens) <= 6
  assert np.isfinite(group[0].logp).all()


def test_broken_settings_are_named(made, tmp_path):
  made.save(tmp_path)
  for text in ("{", "[]", '{"style": "compact", "speed": 3}'):
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(ValueError, match="policy.json: .*  Copy the policy"):
      policy.load(tmp_path)


OPTIONS = dict(
  routes=2, passage_pictures=1, passage_tokens=messages.PassageTokens(text=40)
)


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_settings_are_read_back(options):
  known = dataclasses.replace(tiny_policy.SETTINGS, **options)
  tree = json.loads(json.dumps(dataclasses.asdict(known)))
  assert config.Settings.from_dict(tree) == known
  assert known.options() == options


def test_older_settings_have_no_options(made, tmp_path):
  """The shipped policy's file does not know of them."""
  warm = config.read(config.WARM_START)
  assert "routes" not in (config.WARM_START / config.FILE).read_text()
  assert warm.options() == {}
  some = dataclasses.replace(
    made, settings=dataclasses.replace(made.settings, **OPTIONS)
  )
  some.save(tmp_path)
  assert config.read(tmp_path).options() == OPTIONS
  given = dict(passage_tokens=dict(table=9), routes=1)
  assert config.of_run(str(tmp_path), given).options() == dict(
    passage_pictures=1, passage_tokens=messages.PassageTokens(table=9)
  )


@pytest.mark.parametrize(
  "options, says",
  [
    (dict(routes=0), "routes is 0: a plan may name 1 to 3"),
    (dict(routes=4), "routes is 4"),
    (dict(passage_pictures=-1), "passage_pictures is -1"),
    (dict(passage_tokens=messages.PassageTokens(table=-1)), "table=-1.*0 for"),
    (
      dict(
        passage_pictures=1,
        model=dataclasses.replace(tiny_policy.SPOKEN, vision=None),
      ),
      "reads texts alone: set it to 0",
    ),
  ],
)
def test_options_out_of_range_are_named(options, says):
  with pytest.raises(ValueError, match=says):
    dataclasses.replace(tiny_policy.SETTINGS, **options)


def test_a_fresh_policy_has_the_parameters_of_its_settings():
  made = policy.create(tiny_policy.SETTINGS, tiny_policy.TOKENIZER, 0)
  shapes = jax.tree.map(np.shape, made.params)
  assert shapes == jax.tree.map(
    np.shape, tiny_policy.params(tiny_policy.SPOKEN)
  )
