"""The whole model against transformers', and facts that hold for any input."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import group_decode, logprobs, token_sampling
from r1router_jax.models import attention, hf_checkpoint, qwen2_5_vl
from r1router_jax.models.inference_params import to_inference_params
from r1router_jax.models.layers import project_features
from tests import tiny_policy

CONFIG = tiny_policy.MODEL_CONFIG

CONFIGS = {"grouped": CONFIG, "tied": replace(CONFIG, tied=True, kv_heads=4)}

# Windows are 4 x 4 patches: sizes that fit, that do not, and a lone strip.
GRIDS = [(4, 4), (6, 10), (2, 14), (8, 4)]


@functools.lru_cache
def jit_method(config, method):
  model = qwen2_5_vl.QwenVL(config, qwen2_5_vl.RuntimeConfig(remat="none"))
  return jax.jit(
    lambda params, *args: model.apply({"params": params}, *args, method=method)
  )


def run_model(config, method, *args):
  return jit_method(config, method)(tiny_policy.params(config), *args)


def image_tokens(model, prompt):
  return model.vision(prompt)


def compute_logits(config, states):
  embedding = np.asarray(run_model(config, "output_embedding"))
  return np.asarray(states) @ embedding.T


def random_prompts(rng, config, rows):
  return [tiny_policy.random_prompt(rng, config, *row) for row in rows]


def compute_states(config, batch, response, length=32):
  prompts = tiny_policy.collate(config, batch, length)
  return np.asarray(run_model(config, "__call__", prompts, response))


# ---- Transformers.


def torch_model(config, folder=None):
  """Return transformers' model of these sizes, with the weights in `folder`."""
  pytest.importorskip("torch")
  import transformers

  v = config.vision
  rope = dict(rope_type="default", rope_theta=config.theta)
  rope |= dict(mrope_section=list(config.mrope_section))
  text = dict(vocab_size=config.vocab, hidden_size=config.hidden)
  text |= dict(intermediate_size=config.mlp, num_hidden_layers=config.layers)
  text |= dict(num_attention_heads=config.heads, rms_norm_eps=config.eps)
  text |= dict(num_key_value_heads=config.kv_heads, rope_parameters=rope)
  text |= dict(tie_word_embeddings=config.tied, use_sliding_window=False)
  text |= dict(bos_token_id=0, eos_token_id=2, pad_token_id=0)
  vision = dict(depth=v.layers, hidden_size=v.hidden, num_heads=v.heads)
  vision |= dict(intermediate_size=v.mlp, out_hidden_size=config.hidden)
  vision |= dict(patch_size=v.patch, spatial_merge_size=v.merge)
  vision |= dict(temporal_patch_size=v.temporal, window_size=v.window)
  vision |= dict(fullatt_block_indexes=list(v.full_blocks))
  ids = dict(image_token_id=tiny_policy.tokenizer().image_id)
  ids |= dict(video_token_id=1, vision_start_token_id=3, vision_end_token_id=4)
  theirs = transformers.Qwen2_5_VLConfig(
    text_config=text,
    vision_config=vision,
    tie_word_embeddings=config.tied,
    attn_implementation="eager",
    **ids,
  )
  kind = transformers.Qwen2_5_VLForConditionalGeneration
  if folder is None:
    return kind(theirs).eval()
  theirs.save_pretrained(folder)
  model, report = kind.from_pretrained(
    folder, output_loading_info=True, attn_implementation="eager"
  )
  assert not any(report.values()), report  # Missing, unexpected, mismatched.
  return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def exported_model(request, tmp_path_factory):
  """A config, and transformers' model with weights that this package wrote."""
  config = CONFIGS[request.param]
  folder = str(tmp_path_factory.mktemp(request.param))
  hf_checkpoint.save_params(folder, tiny_policy.params(config), config)
  return config, torch_model(config, folder)


def torch_inputs(encoded):
  """Return one row for transformers, without padding or positions."""
  import torch

  ids = torch.tensor([encoded.ids])
  inputs = dict(
    input_ids=ids,
    attention_mask=torch.ones_like(ids),
    mm_token_type_ids=(ids == tiny_policy.tokenizer().image_id).int(),
  )
  if encoded.images:
    patches = np.concatenate([image.patches for image in encoded.images])
    grids = torch.tensor([[1, *image.grid] for image in encoded.images])
    inputs |= dict(pixel_values=torch.tensor(patches), image_grid_thw=grids)
  return inputs


def torch_logits(model, encoded, response):
  """Return the logits that predict each token of `response`."""
  import torch

  whole = replace(encoded, ids=[*encoded.ids, *response.tolist()])
  model.model.rope_deltas = None
  with torch.no_grad():
    out = model(**torch_inputs(whole)).logits[0].numpy()
  return out[len(encoded.ids) - 1 : -1]


# Prompts of a batch: numbers of text tokens, then the grids of their images;
# (0, 0) is no image.
ROWS = {
  "text": [(9, (0, 0)), (4, (0, 0)), (1, (0, 0))],
  "strips": [(7, (2, 14)), (3, (10, 2))],
  "mixed": [(5, (6, 10)), (9, (0, 0)), (12, (4, 4)), (3, (8, 4))],
  "several": [(6, (4, 4), (2, 6), (4, 2)), (9,), (5, (2, 2), (6, 4))],
}


@pytest.mark.oracle
@pytest.mark.parametrize("kinds", ["text", "strips mixed several"])
def test_logits_are_those_of_transformers(exported_model, kinds):
  config, model = exported_model
  rng = np.random.default_rng(0)
  rows = [row for kind in kinds.split() for row in ROWS[kind]]
  batch = random_prompts(rng, config, rows)
  response = tiny_policy.random_responses(rng, config, len(batch), 2, 5)
  got = compute_logits(config, compute_states(config, batch, response))
  for row, encoded in enumerate(batch):
    for member in range(2):
      wanted = torch_logits(model, encoded, response[row, member])
      np.testing.assert_allclose(got[row, member], wanted, atol=1e-4)


@pytest.mark.oracle
def test_gradients_are_those_of_torch(exported_model, tmp_path):
  """Gradients of the summed log-probability of responses."""
  import torch
  from safetensors.torch import save_file

  config, model = exported_model
  rng = np.random.default_rng(5)
  rows = ROWS["mixed" if config.tied else "several"]
  batch = random_prompts(rng, config, rows)
  response = tiny_policy.random_responses(rng, config, len(batch), 2, 5)

  def total(params, packed, response):
    model = qwen2_5_vl.QwenVL(config).bind({"params": params})
    states, words = model(packed, response), model.output_embedding()
    allowed = jnp.ones(config.vocab, bool)
    return logprobs.token_logp(states, response, words, allowed)[0].sum()

  packed = tiny_policy.collate(config, batch)
  got = jax.jit(jax.grad(total))(tiny_policy.params(config), packed, response)
  model.zero_grad()
  for row, encoded in enumerate(batch):
    for member in response[row]:
      model.model.rope_deltas = None
      whole = replace(encoded, ids=[*encoded.ids, *member.tolist()])
      logits = model(**torch_inputs(whole)).logits[0, len(encoded.ids) - 1 : -1]
      logp = torch.log_softmax(logits, -1)
      logp.gather(1, torch.tensor(member)[:, None].long()).sum().backward()
  grads = {name: x.grad.clone() for name, x in model.named_parameters()}
  save_file(grads, tmp_path / "g.safetensors")
  # Gradients have the names of weights: the importer reads them too.
  wanted = hf_checkpoint.load_params(tmp_path / "g.safetensors", config)
  got, wanted = map(jax.tree_util.tree_leaves_with_path, (got, wanted))
  for (path, ours), (_, theirs) in zip(got, wanted, strict=True):
    atol = 1e-3 * np.abs(theirs).max()
    assert atol > 0, path
    np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=str(path))


@pytest.mark.oracle
@pytest.mark.parametrize("grid", GRIDS)
def test_image_tokens_are_those_of_transformers(exported_model, grid):
  import torch

  config, model = exported_model
  encoded = tiny_policy.random_prompt(np.random.default_rng(1), config, 4, grid)
  prompt = tiny_policy.collate(config, [encoded])
  got = run_model(config, image_tokens, prompt)[0]
  patches = torch.tensor(encoded.images[0].patches)
  with torch.no_grad():
    seen = model.model.visual(patches, grid_thw=torch.tensor([[1, *grid]]))
  wanted = seen.pooler_output.numpy()
  np.testing.assert_allclose(got[: len(wanted)], wanted, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("unrolled", [True, False], ids="unrolled={}".format)
def test_greedy_responses_are_those_of_transformers(exported_model, unrolled):
  import torch

  config, model = exported_model
  rng = np.random.default_rng(2)
  batch = random_prompts(rng, config, ROWS["mixed"])
  params = to_inference_params(
    tiny_policy.params(config), qwen2_5_vl.RuntimeConfig(), unrolled=unrolled
  )
  drawn = group_decode.sample(
    qwen2_5_vl.QwenVL(config, unrolled=unrolled),
    params,
    tiny_policy.collate(config, batch),
    group_decode.response_keys(jax.random.key(0), jnp.arange(len(batch)), 1),
    token_sampling.GREEDY.validate(),
    group_decode.DecodeConstraints(jnp.ones(config.vocab, bool), np.int32([2])),
    max_tokens=10,
  )
  for row, encoded in enumerate(batch):
    # transformers keeps the offset of the last prompt in the model.
    model.model.rope_deltas = None
    with torch.no_grad():
      wanted = model.generate(
        **torch_inputs(encoded), max_new_tokens=10, do_sample=False
      )[0, len(encoded.ids) :].numpy()
    got = np.asarray(drawn.tokens[row, 0])[np.asarray(drawn.mask[row, 0])]
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_imports_either_generation_of_names(tmp_path, name):
  """Files have `visual.` and `model.`, memory has `model.language_model.`."""
  from safetensors.torch import save_file

  config = CONFIGS[name]
  model = torch_model(config)
  model.save_pretrained(tmp_path)
  from_files = hf_checkpoint.load_params(tmp_path, config)
  tensors = {k: v.clone() for k, v in model.state_dict().items()}
  assert any(k.startswith("model.language_model.") for k in tensors)
  save_file(tensors, tmp_path / "memory.safetensors")
  again = hf_checkpoint.load_params(tmp_path / "memory.safetensors", config)
  jax.tree.map(np.testing.assert_array_equal, from_files, again)
  assert hf_checkpoint.read_config(tmp_path) == config


# ---- Invariants, without a reference.


@pytest.fixture
def mixed_rows():
  rng = np.random.default_rng(3)
  batch = random_prompts(rng, CONFIG, ROWS["mixed"])
  return batch, tiny_policy.random_responses(rng, CONFIG, len(batch), 3, 6)


def test_padding_changes_nothing(mixed_rows):
  batch, response = mixed_rows
  tight = compute_states(CONFIG, batch, response, length=32)
  wide = compute_states(CONFIG, batch, response, length=41)
  np.testing.assert_allclose(tight, wide, atol=1e-5)


def test_later_tokens_do_not_change_a_state(mixed_rows):
  batch, response = mixed_rows
  states = compute_states(CONFIG, batch, response)
  changed = response.copy()
  # States 0 to 4 predict tokens 0 to 4, from tokens before those.
  changed[..., 4:] = 0
  got = compute_states(CONFIG, batch, changed)
  np.testing.assert_allclose(got[..., :5, :], states[..., :5, :], atol=1e-5)


def test_rows_do_not_see_each_other(mixed_rows):
  """Each row alone: its own image or none, and fewer windows."""
  batch, response = mixed_rows
  together = compute_states(CONFIG, batch, response)
  for row in (1, 2):
    one = slice(row, row + 1)
    alone = compute_states(CONFIG, batch[one], response[one])
    np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_members_of_a_group_equal_each_alone(mixed_rows):
  batch, response = mixed_rows
  group = compute_states(CONFIG, batch, response)
  for member in range(response.shape[1]):
    one = slice(member, member + 1)
    alone = compute_states(CONFIG, batch, response[:, one])
    np.testing.assert_allclose(alone, group[:, one], atol=1e-5)


def test_extend_equals_prefill_of_prompt_and_response(mixed_rows):
  batch, response = mixed_rows
  text = batch[1]
  states = compute_states(CONFIG, batch, response)[1, 0]
  for t in range(response.shape[2]):
    whole = replace(text, ids=[*text.ids, *response[1, 0, :t].tolist()])
    prompt = tiny_policy.collate(CONFIG, [whole])
    last = run_model(CONFIG, "prefill", prompt).last_state
    np.testing.assert_allclose(last[0], states[t], atol=1e-5)


def test_decode_steps_equal_extend(mixed_rows):
  batch, response = mixed_rows
  states = compute_states(CONFIG, batch, response)
  prefix = run_model(CONFIG, "prefill", tiny_policy.collate(CONFIG, batch))
  b, g, t = response.shape
  # Rows have group slots in another order, and the ring is longer than the
  # responses and starts at position 4.
  room = t + 2
  own = qwen2_5_vl.empty_cache(CONFIG, b * g, room, jnp.float32)
  slots = np.random.default_rng(4).permutation(b * g)
  layout = attention.GroupLayout(*map(jnp.asarray, (np.argsort(slots), slots)))
  for i in range(t - 1):
    token = jnp.asarray(response[:, :, i].reshape(-1)[slots])
    offset, column = jnp.full(b * g, i), jnp.int32((i + 4) % room)
    state, own = run_model(
      CONFIG, "decode_step", prefix, own, token, offset, column, layout
    )
    wanted = states[:, :, i + 1].reshape(b * g, -1)[slots]
    np.testing.assert_allclose(state, wanted, atol=1e-5)


def test_bfloat16_is_near_float32(mixed_rows):
  """States and keys in 16 bits; parameters and log-probabilities in 32."""
  batch, response = mixed_rows
  model = qwen2_5_vl.QwenVL(CONFIG, qwen2_5_vl.RuntimeConfig(dtype="bfloat16"))
  params = {"params": tiny_policy.params(CONFIG)}
  prompt = tiny_policy.collate(CONFIG, batch)
  states16 = jax.jit(model.apply)(params, prompt, response)
  # Parameters stay in float32, but products are in 16 bits.
  embedding16 = model.apply(params, method="output_embedding")
  assert states16.dtype == embedding16.dtype == jnp.bfloat16

  def token_logp(states, embedding):
    allowed = jnp.ones(CONFIG.vocab, bool)
    return logprobs.token_logp(
      jnp.asarray(states), jnp.asarray(response), embedding, allowed
    )[0]

  logp = token_logp(states16, embedding16)
  states = compute_states(CONFIG, batch, response)
  wanted = token_logp(states, params["params"]["head"])
  assert logp.dtype == jnp.float32
  np.testing.assert_allclose(logp, wanted, atol=0.3)
  assert np.abs(logp - wanted).mean() < 0.05


def test_rematerialisation_changes_no_gradient(mixed_rows):
  batch, response = mixed_rows
  prompt = tiny_policy.collate(CONFIG, batch)

  def compute_gradients(remat):
    model = qwen2_5_vl.QwenVL(CONFIG, qwen2_5_vl.RuntimeConfig(remat=remat))

    def sum_of_squares(params, *args):
      return jnp.sum(model.apply({"params": params}, *args) ** 2)

    params = tiny_policy.params(CONFIG)
    return jax.jit(jax.grad(sum_of_squares))(params, prompt, response)

  wanted = compute_gradients("none")
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
  for remat in ("dots", "full"):
    jax.tree.map(close, wanted, compute_gradients(remat))


def test_an_image_changes_its_own_row_alone(mixed_rows):
  batch, response = mixed_rows
  states = compute_states(CONFIG, batch, response)
  (image,) = batch[0].images
  brighter = image._replace(patches=image.patches + 1)
  changed = [replace(batch[0], images=(brighter,)), *batch[1:]]
  moved = np.abs(compute_states(CONFIG, changed, response) - states)
  assert moved[0].max() > 1e-2
  np.testing.assert_allclose(moved[1:], 0, atol=1e-6)


@pytest.mark.parametrize("grid", [*GRIDS, (6, 6), (16, 2)])
def test_window_plan_by_hand(grid):
  """Each patch once, in a window of its own neighbours."""
  vision = tiny_policy.VISION
  h, w = grid
  side, blocks = vision.window // vision.patch, w // 2
  plan = qwen2_5_vl.plan_windows(h, w, vision, windows=16, tokens=64)
  # Every patch stands in exactly one slot.
  assert sorted(plan.gather[plan.valid]) == list(range(h * w))
  windows_across = -(-w // side)
  for patch in range(h * w):
    # Patches come in blocks of 2 x 2, which become a token.
    (i, j), (u, s) = divmod(patch // 4, blocks), divmod(patch % 4, 2)
    row, column = 2 * i + u, 2 * j + s
    (window,), (slot,) = np.where(plan.valid & (plan.gather == patch))
    position = plan.patch_position[window, slot]
    np.testing.assert_array_equal(position, (row, column))
    assert window == row // side * windows_across + column // side
    assert plan.inverse[patch // 4] == window * side**2 // 4 + slot // 4


def test_project_features_has_the_gradient_of_a_product():
  """It has a backward pass of its own, for wide and for narrow kernels."""
  rng = np.random.default_rng(4)
  for d, f in ((5, 3), (3, 5)):
    x, w, g = (
      rng.normal(size=size).astype(np.float32)
      for size in ((2, 4, d), (d, f), (2, 4, f))
    )
    value, back = jax.vjp(project_features, x, w)
    wanted, wanted_back = jax.vjp(jnp.matmul, x, w)
    np.testing.assert_allclose(value, wanted, atol=1e-6)
    for got, want in zip(back(g), wanted_back(g), strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)


def test_project_features_rounds_operands_if_jax_is_told_to():
  """Products and gradients are those of rounded operands, with exact sums."""
  rng = np.random.default_rng(4)

  def rounded(array):
    return np.asarray(array, jnp.bfloat16).astype(np.float64)

  for d, f in ((5, 3), (3, 5)):
    x, w, g = (
      rng.normal(size=size).astype(np.float32)
      for size in ((2, 4, d), (d, f), (2, 4, f))
    )
    with jax.default_matmul_precision("bfloat16"):
      value, back = jax.vjp(project_features, x, w)
      dx, dw = back(g)
    near = functools.partial(np.testing.assert_allclose, atol=1e-5)
    near(value, rounded(x) @ rounded(w))
    near(dx, rounded(g) @ rounded(w).T)
    near(dw, np.einsum("bnd,bnf->df", rounded(x), rounded(g)))
    # What is rounded differs from what is not by more than the tolerance.
    assert np.abs(value - x @ w).max() > 1e-4


@pytest.mark.slow
def test_packed_texts_have_the_states_of_each_alone():
  """With images, and a row that is not full."""
  rng = np.random.default_rng(0)
  random_prompt = functools.partial(tiny_policy.random_prompt, rng, CONFIG)
  first = [(5, (4, 4)), (7,), (4, (2, 4), (4, 2))]
  rows = [[random_prompt(*sizes) for sizes in first], [random_prompt(9)]]
  length = 40
  packed = tiny_policy.processor().collate_packed(rows, 1, 2, length)
  packed = jax.tree.map(lambda x: jnp.asarray(x[0]), packed)
  # Segments count the texts of a row from 1 on; 0 is padding.
  segments = np.zeros((2, length), np.int32)
  for row, texts in enumerate(rows):
    lengths = [len(text.ids) for text in texts]
    ids = np.repeat(np.arange(len(texts)) + 1, lengths)
    segments[row, : len(ids)] = ids
  states = run_model(CONFIG, "packed_states", packed, jnp.asarray(segments))
  for row, texts in enumerate(rows):
    for n, text in enumerate(texts, 1):
      prompt = tiny_policy.collate(CONFIG, [text], len(text.ids))
      ones = jnp.ones(prompt.tokens.shape, jnp.int32)
      alone = run_model(CONFIG, "packed_states", prompt, ones)
      got = states[row][segments[row] == n]
      np.testing.assert_allclose(got, alone[0], rtol=1e-4, atol=1e-4)
