"""The folder of a policy, and responses independent of their batch."""

import dataclasses
import json
import zlib
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from r1router_jax.common.errors import UserError
from r1router_jax.common.records import Passage, Question, Step
from r1router_jax.generation import token_sampling
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import hf_checkpoint, safetensors_io
from r1router_jax.policy import config, conversion, policy
from r1router_jax.protocol import messages
from tests import tiny_policy
from tests.prompt_cases import plan_conversation
from tests.tiny_policy import FULL_VOCAB_CONFIG, POLICY_CONFIG, TOKENIZER


@pytest.fixture(scope="module")
def random_policy():
  return policy.Policy(
    POLICY_CONFIG, TOKENIZER, tiny_policy.params(FULL_VOCAB_CONFIG)
  )


def make_prompt(text, image=""):
  return plan_conversation(text, image, (), style="compact")


TEMPERATURE_1 = token_sampling.SamplingParams()

QUESTIONS = ("Who rules Chad?", "And Niger?", "How long is it?")

PROMPTS = [make_prompt(text) for text in QUESTIONS]


def sample_pairs(some_policy, prompts, seed=0):
  """Return two responses to each prompt, at temperature 1."""
  return some_policy.generate(prompts, jax.random.key(seed), 2, TEMPERATURE_1)


def write_image(path, seed=0):
  rng = np.random.default_rng(seed)
  Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
  return str(path)


def with_options(some_policy, **options):
  return replace(some_policy, config=replace(some_policy.config, **options))


# Groups of two calls, response by response.
def assert_equal_responses(got, wanted):
  for ours, theirs in zip(got, wanted, strict=True):
    for one, other in zip(ours, theirs, strict=True):
      # Tokens are equal; log-probabilities differ by the order of sums.
      assert one.text == other.text
      np.testing.assert_array_equal(one.tokens, other.tokens)
      np.testing.assert_allclose(one.logp, other.logp, atol=1e-4)


def test_saved_policy_gives_the_same_responses(random_policy, tmp_path):
  wanted = sample_pairs(random_policy, PROMPTS)
  assert [len(group) for group in wanted] == [2, 2, 2]
  random_policy.save(tmp_path / "policy")
  names = ["config.json", "model.safetensors", "policy.json", "tokenizer.json"]
  assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == names
  # The folder holds all that makes the responses.
  again = policy.load(tmp_path / "policy")
  assert again.config == random_policy.config
  jax.tree.map(
    np.testing.assert_array_equal, again.params, random_policy.params
  )
  assert_equal_responses(sample_pairs(again, PROMPTS), wanted)
  # Saving a policy where it lies keeps its tokenizer.
  again.save(tmp_path / "policy")
  assert policy.load(tmp_path / "policy").processor.tokenizer.vocab_size == 4096


@pytest.mark.parametrize("asked", [PROMPTS[:1], PROMPTS[:2]])
def test_greedy_group_members_are_equal(random_policy, asked):
  """A lone prompt takes another path, see `layers.matmul_few_rows`."""
  for group, (alone,) in zip(
    random_policy.generate(asked, jax.random.key(0), group_size=3),
    random_policy.generate(asked, jax.random.key(0)),
    strict=True,
  ):
    assert_equal_responses([group], [[alone] * 3])


def test_response_is_independent_of_its_batch(random_policy):
  together = sample_pairs(random_policy, PROMPTS)
  # Alone, then in a batch that decodes in several rounds.
  for i in (2, 0):
    alone = sample_pairs(random_policy, PROMPTS[i : i + 1])
    assert_equal_responses(alone, together[i : i + 1])
  many = sample_pairs(random_policy, PROMPTS * 7)
  assert_equal_responses(many, together * 7)


def test_text_and_logp_belong_to_the_tokens(random_policy):
  tokenizer = random_policy.processor.tokenizer
  for group in sample_pairs(random_policy, PROMPTS, seed=1):
    for response in group:
      assert len(response.tokens) == len(response.logp) <= 12
      assert response.text == tokenizer.decode(response.tokens)
      assert (response.logp <= 0).all()
      # The end token comes last, or not at all at the limit.
      assert (response.tokens[:-1] != tokenizer.eos_id).all()


def test_prompts_with_and_without_images_in_one_batch(random_policy, tmp_path):
  image = write_image(tmp_path / "p.png")
  asked = [PROMPTS[0], make_prompt("What is it?", image)]
  # Prompts of two shapes, sampled one after the other.
  text, picture = sample_pairs(random_policy, asked)
  assert_equal_responses([text], sample_pairs(random_policy, PROMPTS[:1]))
  assert len(picture) == 2


def test_two_images_in_a_prompt(random_policy, tmp_path):
  """The model sees each image in its place, in any batch."""
  a, b, c = (write_image(tmp_path / f"{n}.png", seed=n) for n in range(3))
  seeing = with_options(random_policy, passage_images=2)

  def show(*images):
    passages = [
      Passage(f"{n}", "image", "a flag", path) for n, path in enumerate(images)
    ]
    shown = dict(sub_question="Who?", passages=tuple(passages))
    step = Step("q", "answer", Question("q", "?"), **shown)
    return seeing.config.build_prompt(step)

  # Order and choice of the images differ.
  shown = [show(a, b), show(b, a), show(a, c), show(a)]
  assert [len(each.images) for each in shown] == [2, 2, 2, 1]
  together = sample_pairs(seeing, shown)
  for i in (0, 3):
    alone = sample_pairs(seeing, shown[i : i + 1])
    assert_equal_responses(alone, together[i : i + 1])
  first = [group[0].logp[0] for group in together[:3]]
  assert len({round(float(logp), 4) for logp in first}) == 3


def test_prompts_of_other_images_have_random_numbers_of_their_own(
  random_policy, tmp_path
):
  a, b, c = (write_image(tmp_path / f"{n}.png", seed=n % 2) for n in range(3))
  prompts = [make_prompt("Whose flag?", x) for x in (a, b, c)]
  prompts.append(make_prompt("Whose flag?"))
  encoded = [*map(random_policy.processor.encode, prompts)]
  assert encoded[0].ids == encoded[1].ids
  hashes = policy.prompt_hashes(encoded).tolist()
  # The same pixels in another file are the same image.
  assert hashes[0] == hashes[2] and len({*hashes}) == 3
  # Those of texts alone are what they always were.
  ids = np.array(encoded[3].ids, np.int32)
  assert hashes[3] == zlib.crc32(ids.tobytes()) & 0x7FFFFFFF


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(group_size=0), "group_size is 0: sample 1"),
    (dict(group_size=-1), "group_size is -1"),
    (dict(stop="</ret>"), "stop is '</ret>': give a tuple"),
    (dict(stop=("",)), "none of them empty"),
  ],
)
def test_unfit_requests_are_named(random_policy, change, words):
  options = dict(key=jax.random.key(0), group_size=1) | change
  with pytest.raises(ValueError, match=words):
    random_policy.generate(PROMPTS[:1], **options)


def test_a_policy_that_is_not_finite_leaves_the_one_that_is_there(
  random_policy, tmp_path
):
  random_policy.save(tmp_path)
  before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
  params = dict(random_policy.params)
  params["embed"] = params["embed"].at[3, 4].set(np.nan)
  changed = replace(with_options(random_policy, passages=2), params=params)
  with pytest.raises(safetensors_io.BadWeights, match="embed_tokens.*NaN"):
    changed.save(tmp_path)
  assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_no_conversations_give_no_responses(random_policy):
  assert random_policy.generate([], jax.random.key(0)) == []


def test_too_long_question_is_rejected(random_policy):
  with pytest.raises(PromptTooLong, match="over the limit of 48"):
    random_policy.generate([make_prompt("who " * 60)], jax.random.key(0))


@pytest.mark.parametrize(
  "name, error",
  [
    ("config.json", hf_checkpoint.BadConfig),
    ("model.safetensors", safetensors_io.BadWeights),
    ("tokenizer.json", FileNotFoundError),
  ],
)
def test_missing_file_is_named(random_policy, tmp_path, name, error):
  random_policy.save(tmp_path)
  (tmp_path / name).unlink()
  with pytest.raises(error, match=name):
    policy.load(tmp_path)


def test_missing_folder_is_named():
  with pytest.raises(FileNotFoundError, match="no folder nowhere"):
    policy.load("nowhere")
  with pytest.raises(FileNotFoundError, match="no/where, and the hub gives no"):
    policy.load("no/where")


@pytest.mark.slow
def test_published_checkpoint_opens_as_policy(random_policy, tmp_path):
  """A folder without `policy.json`: the paper's prompts, in bfloat16."""
  random_policy.save(tmp_path)
  (tmp_path / "policy.json").unlink()
  opened = policy.load(tmp_path)
  assert opened.config.style == "full"
  assert opened.params["embed"].dtype == jnp.bfloat16
  # Few tokens, since bfloat16 is slow on CPUs.
  short = with_options(opened, response_tokens=(6,), decode_batch_size=1)
  path = write_image(tmp_path / "p.png")
  asked = plan_conversation("Whose flag is this?", path, (), style="full")
  (group,) = short.generate([asked], jax.random.key(0))
  assert 1 <= len(group[0].tokens) <= 6
  assert np.isfinite(group[0].logp).all()


def test_a_tokenizer_beyond_the_embeddings_is_refused(random_policy, tmp_path):
  model = replace(FULL_VOCAB_CONFIG, vocab=4095)
  random_policy.save(tmp_path)
  hf_checkpoint.save_params(tmp_path, tiny_policy.params(model), model)
  path = tmp_path / "config.json"
  tree = json.loads(path.read_text()) | dict(vocab_size=4095)
  path.write_text(json.dumps(tree))
  for act in (
    policy.load,
    lambda x: conversion.convert_policy(x, tmp_path / "b"),
  ):
    with pytest.raises(ValueError, match="ids up to 4095, .* 4095 embeddings"):
      act(str(tmp_path))


def test_broken_policy_json_is_named(random_policy, tmp_path):
  random_policy.save(tmp_path)
  # No JSON, no object, an unknown option.
  for text in ("{", "[]", '{"style": "compact", "speed": 3}', "[" * 10**5):
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(ValueError, match="policy.json: .*  Copy the policy"):
      policy.load(tmp_path)


MEANS = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.1, 0.2, 0.3])
SIZE = dict(size=dict(shortest_edge=64, longest_edge=4096))
LIMITS = dict(min_pixels=64, max_pixels=4096)


@pytest.mark.parametrize(
  "files, wanted",
  [
    ({}, {}),
    (dict(generation=dict(eos_token_id=7)), dict(end_ids=(7,))),
    (dict(generation=dict(eos_token_id=[2, 0])), dict(end_ids=(2, 0))),
    (dict(generation=dict(eos_token_id=None)), {}),
    (
      dict(preprocessor=dict(do_normalize=False)),
      dict(image_mean=(0.0,) * 3, image_std=(1.0,) * 3),
    ),
    (dict(preprocessor=LIMITS), LIMITS),
    (dict(preprocessor=SIZE), LIMITS),
    (dict(preprocessor=LIMITS | dict(size=None)), LIMITS),
    # The processor's own file comes first.
    (
      dict(
        processor=dict(image_processor=SIZE), preprocessor=dict(min_pixels=1)
      ),
      LIMITS,
    ),
    (dict(processor=dict(processor_class="X"), preprocessor=LIMITS), LIMITS),
    (
      dict(preprocessor=MEANS),
      dict(image_mean=(0.5, 0.4, 0.3), image_std=(0.1, 0.2, 0.3)),
    ),
    # As published; so many pixels leave no room in a prompt.
    (dict(preprocessor=dict(min_pixels=3136, max_pixels=12845056)), {}),
  ],
)
def test_files_for_transformers_are_read(
  random_policy, tmp_path, files, wanted
):
  random_policy.save(tmp_path)
  (tmp_path / "policy.json").unlink()
  defaults = config.read_config(tmp_path)
  for name, tree in files.items():
    (tmp_path / f"{name}_config.json").write_text(json.dumps(tree))
  found = config.read_config(tmp_path)
  assert found == replace(defaults, **wanted)
  # They survive a save, whose policy.json may say otherwise.
  config.write_options(tmp_path, replace(found, max_pixels=5000))
  assert config.read_config(tmp_path) == replace(found, max_pixels=5000)


@pytest.mark.parametrize("name", ["generation", "processor", "preprocessor"])
@pytest.mark.parametrize(
  "text",
  [
    *("", "{", "[]", '{"eos_token_id": "x", "image_processor": 3, "size": 3}'),
    '{"min_pixels": 0, "image_processor": {"size": 1}, "eos_token_id": 0.5}',
  ],
)
def test_broken_files_for_transformers_are_named(
  random_policy, tmp_path, name, text
):
  random_policy.save(tmp_path)
  (tmp_path / f"{name}_config.json").write_text(text)
  with pytest.raises(ValueError, match=f"{name}_config.json: .*Copy that of"):
    config.read_config(tmp_path)


def test_end_tokens_of_config_json_alone_are_read(random_policy, tmp_path):
  random_policy.save(tmp_path)
  (tmp_path / "policy.json").unlink()
  path = tmp_path / "config.json"
  tree = json.loads(path.read_text())
  for changes, wanted in (
    (dict(eos_token_id=None), ()),
    (dict(eos_token_id=[2, 7]), (2, 7)),
    (dict(eos_token_id=None, text_config=dict(eos_token_id=9)), (9,)),
  ):
    path.write_text(json.dumps(tree | changes))
    assert config._read_hf_options(tmp_path, None)["end_ids"] == wanted
  # What is generated with goes before it.
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
  assert config._read_hf_options(tmp_path, None)["end_ids"] == (3,)


@pytest.mark.parametrize(
  "name", ["patch_size", "merge_size", "temporal_patch_size"]
)
def test_patches_of_another_tower_are_refused(random_policy, tmp_path, name):
  random_policy.save(tmp_path)
  path = tmp_path / "preprocessor_config.json"
  path.write_text(json.dumps({name: 3}))
  with pytest.raises(ValueError, match=f"{name} is 3, and that of the vision"):
    config.read_config(tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
  "changes",
  [{}, dict(rescale_factor=1 / 127), dict(do_normalize=False)],
)
def test_images_are_prepared_as_transformers_prepares_them(
  random_policy, tmp_path, changes
):
  pytest.importorskip("torch")
  from transformers.models.qwen2_vl import (
    image_processing_pil_qwen2_vl as oracle,
  )

  random_policy.save(tmp_path)
  (tmp_path / "policy.json").unlink()
  tree = dict(patch_size=4, temporal_patch_size=2, merge_size=2) | MEANS
  tree |= dict(image_processor_type="Qwen2VLImageProcessor") | SIZE | changes
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
  path = write_image(tmp_path / "p.png")
  Image.open(path).resize((300, 200)).save(path)
  theirs = oracle.Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
  wanted = theirs([Image.open(path)], return_tensors="np")
  ours = policy.load(tmp_path).processor._load_image(path)
  assert [1, *ours.grid] == wanted["image_grid_thw"][0].tolist()
  # The constants are divided, and not the pixels multiplied.
  rtol = 3e-5 if "rescale_factor" in changes else 0
  np.testing.assert_allclose(ours.patches, wanted["pixel_values"], rtol)


def nest(tree):
  """Return a config.json as transformers 5 writes it."""
  vision = dict(tree.pop("vision_config"), dtype="float32", extra=1)
  top = ("model_type", "architectures", "image_token_id", "tie_word_embeddings")
  text = {name: tree[name] for name in tree if name not in top}
  rest = {name: tree[name] for name in top}
  text = dict(text, dtype="float32", model_type="qwen2_5_vl_text")
  return dict(rest, text_config=text, vision_config=vision, dtype="float32")


MORE = dict(max_position_embeddings=128000, eos_token_id=[2, 0])
MORE |= dict(bos_token_id=None, video_token_id=6, transformers_version="5.1")


@pytest.mark.parametrize("form", [dict, nest])
def test_an_export_keeps_what_its_source_says(random_policy, tmp_path, form):
  random_policy.save(tmp_path / "a")
  path = tmp_path / "a" / "config.json"
  tree = form(json.loads(path.read_text())) | MORE
  path.write_text(json.dumps(tree))
  texts = {name: f'{{"of": "{name}"}}' for name in config.HF_SIDE_FILES}
  for name, text in texts.items():
    (tmp_path / "a" / name).write_text(text)
  conversion.convert_policy(str(tmp_path / "a"), tmp_path / "b", "bfloat16")
  policy.load(tmp_path / "a").save(tmp_path / "c")
  for folder, dtype in (("b", "bfloat16"), ("c", "float32")):
    written = json.loads((tmp_path / folder / "config.json").read_text())
    parts = (
      written,
      *(written.get(f"{x}_config", {}) for x in ("text", "vision")),
    )
    assert {part.pop("torch_dtype", dtype) for part in parts} == {dtype}
    wanted = json.loads(json.dumps(tree))
    for part in (wanted, *wanted.values()):
      if isinstance(part, dict):
        part.pop("dtype", None), part.pop("torch_dtype", None)
    assert written == wanted
    for name, text in texts.items():
      assert (tmp_path / folder / name).read_text() == text
  # Of another model only what it is itself is written.
  untied = replace(FULL_VOCAB_CONFIG, tied=False)
  params = tiny_policy.params(untied)
  other = replace(policy.load(tmp_path / "a"), params=params)
  with_options(other, model=untied).save(tmp_path / "d")
  written = json.loads((tmp_path / "d" / "config.json").read_text())
  assert written["tie_word_embeddings"] is False
  assert "video_token_id" not in written


OPTIONS = dict(
  max_routes=2, passage_images=1, passage_tokens=messages.PassageTokens(text=40)
)


MARKED = dict(model=tiny_policy.TEXT_MODEL, image_marker=tiny_policy.MARKER)


@pytest.mark.parametrize("options", [{}, OPTIONS, MARKED])
def test_config_survives_json(options):
  known = replace(POLICY_CONFIG, **options)
  tree = json.loads(json.dumps(dataclasses.asdict(known)))
  assert config.PolicyConfig.from_dict(tree) == known
  # The model is no option.
  wanted = {k: v for k, v in options.items() if k != "model"}
  assert known.enabled_extensions() == wanted


def test_extensions_are_saved_and_overridden(random_policy, tmp_path):
  with_options(random_policy, **OPTIONS).save(tmp_path)
  path = tmp_path / config.POLICY_FILE
  saved = path.read_text()
  # A file without the options, as of older versions, has their defaults.
  tree = json.loads(saved)
  path.write_text(json.dumps({k: tree[k] for k in tree if k not in OPTIONS}))
  assert config.read_config(tmp_path).enabled_extensions() == {}
  path.write_text(saved)
  assert config.read_config(tmp_path).enabled_extensions() == OPTIONS
  # Options of a run replace those of the file, one by one.
  given = dict(passage_tokens=dict(table=9), max_routes=1)
  found = config.config_for_run(str(tmp_path), given).enabled_extensions()
  limits = messages.PassageTokens(table=9)
  assert found == dict(passage_images=1, passage_tokens=limits)


def test_policy_json_of_older_versions_is_read(random_policy, tmp_path):
  random_policy.save(tmp_path)
  path = tmp_path / config.POLICY_FILE
  tree = json.loads(path.read_text())
  for old, new in config.OLD_KEYS.items():
    tree[old] = tree.pop(new)
  tree["routes"] = 3
  path.write_text(json.dumps(tree))
  wanted = replace(random_policy.config, max_routes=3)
  assert config.read_config(tmp_path) == wanted
  # Overrides by old names win over the policy's own options, too.
  assert config.config_for_run(str(tmp_path), dict(routes=2)).max_routes == 2


SEES_NOTHING = dataclasses.asdict(replace(FULL_VOCAB_CONFIG, vision=None))


@pytest.mark.parametrize(
  "options, says",
  [
    (dict(max_routes=0), "max_routes is 0: expected `int` >= 1"),
    (dict(max_routes=4), "max_routes is 4: expected `int` <= 3"),
    (dict(max_routes=1.5), "max_routes is 1.5: expected `int`, got `float`"),
    (dict(passage_images=-1), "passage_images is -1"),
    (dict(passage_images=10**9), "passage_images is 1000000000"),
    (dict(passages=0), "passages is 0: expected `int` >= 1"),
    (dict(passage_tokens=dict(table=-1)), "passage_tokens.table is -1"),
    (dict(passage_tokens=dict(text=0.5)), "passage_tokens.text is 0.5"),
    (
      dict(passage_images=1, model=SEES_NOTHING),
      "reads texts alone: set it to 0",
    ),
    (dict(image_marker="[picture]"), "'\\[picture\\]', but this policy sees"),
    (dict(style="../x"), "style is '../x': take one of full, compact"),
    (dict(prompt_tokens=[]), "prompt_tokens: expected `array` of length >= 1"),
    (dict(prompt_tokens=[0]), r"prompt_tokens\[0\] is 0"),
    (
      dict(prompt_tokens=[160, 32]),
      r"prompt_tokens is \(160, 32\): wanted asc",
    ),
    (dict(prompt_tokens=[32, 32]), "wanted ascending lengths"),
    (dict(prompt_tokens="32"), "prompt_tokens is '32': expected `array`"),
    (dict(response_tokens=[-5]), r"response_tokens\[0\] is -5"),
    (dict(response_tokens=[10**9]), r"response_tokens\[0\] is 1000000000"),
    (dict(response_tokens=[10**400]), r"response_tokens\[0\] is 1000"),
    (dict(max_pixels=0), "max_pixels is 0"),
    (dict(max_pixels=10**12), "max_pixels is 1000000000000"),
    (dict(min_pixels=10**6), "min_pixels is 1000000, above max_pixels, 1024"),
    (dict(decode_batch_size=0), "decode_batch_size is 0"),
    (dict(decode_batch_size=10**9), "decode_batch_size is 1000000000"),
    (dict(batch_rows=1.5), "decode_batch_size is 1.5"),
    (dict(compute=dict(dtype="int8")), "compute.dtype is 'int8': take one of"),
    (dict(compute=dict(dtype=None)), "compute.dtype is None"),
    (dict(compute=dict(remat="junk")), "compute.remat is 'junk': take one of"),
    (dict(compute=dict(attention="os:system")), "compute.attention is 'os:sys"),
    (
      dict(compute=dict(kernel="xla")),
      "compute.kernel is unknown: take one of",
    ),
    (dict(compute=[]), "compute: expected `object`, got `array`"),
    (dict(speed=3), "speed is unknown: take one of"),
    (dict(labels_cells="yes"), "labels_cells is 'yes': expected `bool`"),
  ],
)
def test_option_out_of_range_is_rejected(options, says):
  tree = dataclasses.asdict(POLICY_CONFIG) | options
  with pytest.raises(UserError, match=says):
    config.PolicyConfig.from_dict(tree)


def test_unknown_size_of_a_model_is_rejected():
  says = "config.policy.overrides.model is '5b': take one of 3b, 7b"
  with pytest.raises(ValueError, match=says):
    config.config_for_run("", dict(model="5b"))


def test_init_policy_has_the_parameters_of_its_config():
  made = policy.init_policy(POLICY_CONFIG, TOKENIZER, 0)
  shapes = jax.tree.map(np.shape, made.params)
  assert shapes == jax.tree.map(np.shape, tiny_policy.params(FULL_VOCAB_CONFIG))
