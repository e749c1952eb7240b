"""The whole model against transformers', and facts that hold for any input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1router_jax.generation import group_decode, logprobs, token_sampling
from r1router_jax.models import (
  attention,
  hf_checkpoint,
  inference_params,
  layers,
  qwen2_5_vl,
)
from tests import tiny_policy

CONFIGS = {
  "grouped": tiny_policy.CONFIG,
  "tied": dataclasses.replace(tiny_policy.CONFIG, tied=True, kv_heads=4),
}

# Windows are 4 x 4 patches: sizes that fit, that do not, and a lone strip.
GRIDS = [(4, 4), (6, 10), (2, 14), (8, 4)]


@functools.lru_cache
def compiled(config, method):
  model = qwen2_5_vl.QwenVL(config, qwen2_5_vl.Compute(remat="none"))
  return jax.jit(
    lambda params, *args: model.apply({"params": params}, *args, method=method)
  )


def apply(config, method, *args):
  return compiled(config, method)(tiny_policy.params(config), *args)


def pictures(model, prompt):
  return model.vision(prompt)


def logits(config, states):
  return np.asarray(states) @ np.asarray(apply(config, "vocabulary")).T


def states_of(config, batch, response, length=32):
  return np.asarray(
    apply(config, "__call__", tiny_policy.pack(config, batch, length), response)
  )


# ---- Transformers.


def torch_model(config, folder=None):
  """transformers' model of the same sizes; with the weights in `folder`."""
  pytest.importorskip("torch")
  import transformers

  v = config.vision
  theirs = transformers.Qwen2_5_VLConfig(
    text_config=dict(
      vocab_size=config.vocab,
      hidden_size=config.hidden,
      intermediate_size=config.mlp,
      num_hidden_layers=config.layers,
      num_attention_heads=config.heads,
      num_key_value_heads=config.kv_heads,
      rms_norm_eps=config.eps,
      rope_parameters=dict(
        rope_type="default",
        rope_theta=config.theta,
        mrope_section=list(config.mrope_section),
      ),
      tie_word_embeddings=config.tied,
      use_sliding_window=False,
      bos_token_id=0,
      eos_token_id=2,
      pad_token_id=0,
    ),
    vision_config=dict(
      depth=v.layers,
      hidden_size=v.hidden,
      intermediate_size=v.mlp,
      num_heads=v.heads,
      out_hidden_size=config.hidden,
      patch_size=v.patch,
      spatial_merge_size=v.merge,
      temporal_patch_size=v.temporal,
      window_size=v.window,
      fullatt_block_indexes=list(v.full_blocks),
    ),
    image_token_id=tiny_policy.tokenizer().picture,
    video_token_id=1,
    vision_start_token_id=3,
    vision_end_token_id=4,
    tie_word_embeddings=config.tied,
    attn_implementation="eager",
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
def pair(request, tmp_path_factory):
  """A config and transformers' model, with weights that we exported."""
  config = CONFIGS[request.param]
  folder = str(tmp_path_factory.mktemp(request.param))
  hf_checkpoint.save(folder, tiny_policy.params(config), config)
  return config, torch_model(config, folder)


def torch_inputs(encoded):
  """One row for transformers: no padding, its own idea of positions."""
  import torch

  ids = torch.tensor([encoded.ids])
  inputs = dict(
    input_ids=ids,
    attention_mask=torch.ones_like(ids),
    mm_token_type_ids=(ids == tiny_policy.tokenizer().picture).int(),
  )
  if encoded.pictures:
    inputs |= dict(
      pixel_values=torch.tensor(
        np.concatenate([picture.patches for picture in encoded.pictures])
      ),
      image_grid_thw=torch.tensor(
        [[1, *picture.grid] for picture in encoded.pictures]
      ),
    )
  return inputs


def torch_logits(model, encoded, response):
  """Logits that predict each token of `response`."""
  import torch

  whole = dataclasses.replace(encoded, ids=[*encoded.ids, *response.tolist()])
  model.model.rope_deltas = None
  with torch.no_grad():
    out = model(**torch_inputs(whole)).logits[0].numpy()
  return out[len(encoded.ids) - 1 : -1]


ROWS = {
  "text": [(9, (0, 0)), (4, (0, 0)), (1, (0, 0))],
  "strips": [(7, (2, 14)), (3, (10, 2))],
  "mixed": [(5, (6, 10)), (9, (0, 0)), (12, (4, 4)), (3, (8, 4))],
  "several": [(6, (4, 4), (2, 6), (4, 2)), (9,), (5, (2, 2), (6, 4))],
}


@pytest.mark.oracle
@pytest.mark.parametrize("rows", ROWS)
def test_logits_are_those_of_transformers(pair, rows):
  config, model = pair
  rng = np.random.default_rng(0)
  batch = [tiny_policy.encoded(rng, config, *row) for row in ROWS[rows]]
  response = tiny_policy.responses(rng, config, len(batch), 2, 5)
  got = logits(config, states_of(config, batch, response))
  for row, encoded in enumerate(batch):
    for member in range(2):
      wanted = torch_logits(model, encoded, response[row, member])
      np.testing.assert_allclose(got[row, member], wanted, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("rows", ["mixed", "several"])
def test_gradients_are_those_of_torch(pair, rows, tmp_path):
  """Of the summed log-probability of responses, by every parameter."""
  import torch
  from safetensors.torch import save_file

  config, model = pair
  rng = np.random.default_rng(5)
  batch = [tiny_policy.encoded(rng, config, *row) for row in ROWS[rows]]
  response = tiny_policy.responses(rng, config, len(batch), 2, 5)

  def total(params, packed, response):
    model = qwen2_5_vl.QwenVL(config)
    states = model.apply({"params": params}, packed, response)
    vocabulary = model.apply({"params": params}, method="vocabulary")
    logp, _ = logprobs.token_logp(
      states, response, vocabulary, jnp.ones(config.vocab, bool)
    )
    return logp.sum()

  got = jax.jit(jax.grad(total))(
    tiny_policy.params(config), tiny_policy.pack(config, batch), response
  )
  model.zero_grad()
  for row, encoded in enumerate(batch):
    for member in response[row]:
      model.model.rope_deltas = None
      whole = dataclasses.replace(encoded, ids=[*encoded.ids, *member.tolist()])
      logits = model(**torch_inputs(whole)).logits[0, len(encoded.ids) - 1 : -1]
      logp = torch.log_softmax(logits, -1)
      logp.gather(1, torch.tensor(member)[:, None].long()).sum().backward()
  save_file(
    {name: x.grad.clone() for name, x in model.named_parameters()},
    tmp_path / "g.safetensors",
  )
  wanted = hf_checkpoint.load(tmp_path / "g.safetensors", config)
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(got),
    jax.tree.leaves(wanted),
    strict=True,
  ):
    largest = np.abs(theirs).max()
    assert largest > 0, path
    np.testing.assert_allclose(
      ours, theirs, atol=1e-3 * largest, err_msg=str(path)
    )


@pytest.mark.oracle
@pytest.mark.parametrize("grid", GRIDS)
def test_picture_tokens_are_those_of_transformers(pair, grid):
  import torch

  config, model = pair
  encoded = tiny_policy.encoded(np.random.default_rng(1), config, 4, grid)
  prompt = tiny_policy.pack(config, [encoded])
  got = apply(config, pictures, prompt)[0]
  with torch.no_grad():
    wanted = model.model.visual(
      torch.tensor(encoded.pictures[0].patches),
      grid_thw=torch.tensor([[1, *grid]]),
    ).pooler_output.numpy()
  np.testing.assert_allclose(got[: len(wanted)], wanted, atol=1e-4)


@pytest.mark.oracle
@pytest.mark.parametrize("unrolled", [True, False], ids="unrolled={}".format)
def test_greedy_responses_are_those_of_transformers(pair, unrolled):
  import torch

  config, model = pair
  rng = np.random.default_rng(2)
  batch = [tiny_policy.encoded(rng, config, *row) for row in ROWS["mixed"]]
  params = inference_params.served(
    tiny_policy.params(config), qwen2_5_vl.Compute(), unrolled=unrolled
  )
  drawn = group_decode.sample(
    qwen2_5_vl.QwenVL(config, unrolled=unrolled),
    params,
    tiny_policy.pack(config, batch),
    group_decode.keys(jax.random.key(0), jnp.arange(len(batch)), 1),
    token_sampling.GREEDY.validate(),
    group_decode.Words(jnp.ones(config.vocab, bool), 2),
    tokens=10,
  )
  for row, encoded in enumerate(batch):
    model.model.rope_deltas = None
    with torch.no_grad():
      wanted = model.generate(
        **torch_inputs(encoded),
        max_new_tokens=10,
        do_sample=False,
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
  from_files = hf_checkpoint.load(tmp_path, config)
  tensors = {k: v.clone() for k, v in model.state_dict().items()}
  assert any(k.startswith("model.language_model.") for k in tensors)
  save_file(tensors, tmp_path / "memory.safetensors")
  again = hf_checkpoint.load(tmp_path / "memory.safetensors", config)
  jax.tree.map(np.testing.assert_array_equal, from_files, again)
  assert hf_checkpoint.read_config(tmp_path) == config


# ---- Facts for any input.


@pytest.fixture
def rows():
  rng = np.random.default_rng(3)
  batch = [
    tiny_policy.encoded(rng, tiny_policy.CONFIG, *row) for row in ROWS["mixed"]
  ]
  return batch, tiny_policy.responses(rng, tiny_policy.CONFIG, len(batch), 3, 6)


def test_padding_changes_nothing(rows):
  batch, response = rows
  tight = states_of(tiny_policy.CONFIG, batch, response, length=32)
  wide = states_of(tiny_policy.CONFIG, batch, response, length=41)
  np.testing.assert_allclose(tight, wide, atol=1e-5)
  later = response.copy()
  later[..., 4:] = 0  # What follows a token cannot change its state.
  np.testing.assert_allclose(
    states_of(tiny_policy.CONFIG, batch, later)[..., :5, :],
    tight[..., :5, :],
    atol=1e-5,
  )


def test_rows_do_not_see_each_other(rows):
  """Each row alone: its picture, next to none, in fewer windows."""
  batch, response = rows
  together = states_of(tiny_policy.CONFIG, batch, response)
  for row in (1, 2):
    alone = states_of(
      tiny_policy.CONFIG, batch[row : row + 1], response[row : row + 1]
    )
    np.testing.assert_allclose(alone[0], together[row], atol=1e-5)


def test_members_of_a_group_equal_each_alone(rows):
  batch, response = rows
  group = states_of(tiny_policy.CONFIG, batch, response)
  for member in range(response.shape[1]):
    one = slice(member, member + 1)
    alone = states_of(tiny_policy.CONFIG, batch, response[:, one])
    np.testing.assert_allclose(alone, group[:, one], atol=1e-5)


def test_a_response_read_as_a_prompt_has_the_same_states(rows):
  """`extend` after a prompt is `prefill` of the prompt and the response."""
  batch, response = rows
  text = batch[1]
  states = states_of(tiny_policy.CONFIG, batch, response)[1, 0]
  for t in range(response.shape[2]):
    whole = tiny_policy.Encoded([*text.ids, *response[1, 0, :t].tolist()])
    last = apply(
      tiny_policy.CONFIG,
      "prefill",
      tiny_policy.pack(tiny_policy.CONFIG, [whole]),
    ).last
    np.testing.assert_allclose(last[0], states[t], atol=1e-5)


def test_decoding_steps_equal_extend(rows):
  batch, response = rows
  config = tiny_policy.CONFIG
  states = states_of(config, batch, response)
  prefix = apply(config, "prefill", tiny_policy.pack(config, batch))
  b, g, t = response.shape
  # Rows lie in their lanes in another order, and the ring begins in its middle.
  own = qwen2_5_vl.empty_cache(config, b * g, t + 2, jnp.float32)
  of = np.random.default_rng(4).permutation(b * g)
  lanes = attention.Lanes(jnp.asarray(np.argsort(of)), jnp.asarray(of))
  for i in range(t - 1):
    token = jnp.asarray(response[:, :, i].reshape(-1)[of])
    state, own = apply(
      config,
      "decode",
      prefix,
      own,
      token,
      jnp.full(b * g, i),
      jnp.int32((i + 4) % (t + 2)),
      lanes,
    )
    wanted = states[:, :, i + 1].reshape(b * g, -1)[of]
    np.testing.assert_allclose(state, wanted, atol=1e-5)


def test_bfloat16_is_near_float32(rows):
  """States and keys in 16 bits; parameters and log-probabilities in 32."""
  batch, response = rows
  model = qwen2_5_vl.QwenVL(
    tiny_policy.CONFIG, qwen2_5_vl.Compute(dtype="bfloat16")
  )
  params = {"params": tiny_policy.params(tiny_policy.CONFIG)}
  states = jax.jit(model.apply)(
    params, tiny_policy.pack(tiny_policy.CONFIG, batch), response
  )
  rows16 = model.apply(params, method="vocabulary")
  assert states.dtype == rows16.dtype == jnp.bfloat16
  logp, _ = logprobs.token_logp(
    states,
    jnp.asarray(response),
    rows16,
    jnp.ones(tiny_policy.CONFIG.vocab, bool),
  )
  wanted, _ = logprobs.token_logp(
    jnp.asarray(states_of(tiny_policy.CONFIG, batch, response)),
    jnp.asarray(response),
    params["params"]["head"],
    jnp.ones(tiny_policy.CONFIG.vocab, bool),
  )
  assert logp.dtype == jnp.float32
  np.testing.assert_allclose(logp, wanted, atol=0.3)
  assert np.abs(logp - wanted).mean() < 0.05


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_recomputing_changes_no_gradient(rows, remat):
  batch, response = rows
  of = (
    tiny_policy.params(tiny_policy.CONFIG),
    tiny_policy.pack(tiny_policy.CONFIG, batch),
    response,
  )

  def grads(how):
    model = qwen2_5_vl.QwenVL(tiny_policy.CONFIG, qwen2_5_vl.Compute(remat=how))
    return jax.jit(
      jax.grad(
        lambda params, *of: jnp.sum(model.apply({"params": params}, *of) ** 2)
      )
    )(*of)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
    grads("none"),
    grads(remat),
  )


def test_a_picture_is_seen_where_it_stands(rows):
  batch, response = rows
  states = states_of(tiny_policy.CONFIG, batch, response)
  (picture,) = batch[0].pictures
  brighter = picture._replace(patches=picture.patches + 1)
  changed = [dataclasses.replace(batch[0], pictures=(brighter,)), *batch[1:]]
  moved = np.abs(states_of(tiny_policy.CONFIG, changed, response) - states)
  assert moved[0].max() > 1e-2
  np.testing.assert_allclose(moved[1:], 0, atol=1e-6)


@pytest.mark.parametrize("grid", [*GRIDS, (6, 6), (16, 2)])
def test_window_plan_by_hand(grid):
  """Each patch once, in a window of its own neighbours."""
  v = tiny_policy.VISION
  h, w = grid
  side, blocks = v.window // v.patch, w // 2
  gather, valid, place, inverse = qwen2_5_vl.plan_image(
    h, w, v, windows=16, tokens=64
  )
  assert sorted(gather[valid]) == list(range(h * w))
  for patch in range(h * w):
    (i, j), (u, s) = divmod(patch // 4, blocks), divmod(patch % 4, 2)
    row, column = 2 * i + u, 2 * j + s
    (window,), (slot,) = np.where(valid & (gather == patch))
    np.testing.assert_array_equal(place[window, slot], (row, column))
    across = -(-w // side)
    assert window == row // side * across + column // side
    assert inverse[patch // 4] == window * side**2 // 4 + slot // 4


def test_projections_have_the_gradient_of_a_product():
  """`layers.project` has a backward pass of its own."""
  rng = np.random.default_rng(4)
  for d, f in ((5, 3), (3, 5)):
    x, w, g = (
      rng.normal(size=size).astype(np.float32)
      for size in ((2, 4, d), (d, f), (2, 4, f))
    )
    value, back = jax.vjp(layers.project, x, w)
    wanted, wanted_back = jax.vjp(lambda x, w: x @ w, x, w)
    np.testing.assert_allclose(value, wanted, atol=1e-6)
    for got, want in zip(back(g), wanted_back(g), strict=True):
      np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.slow
def test_texts_side_by_side_are_as_alone():
  """States after each token, with pictures and a row that is not full."""
  rng = np.random.default_rng(0)
  model, params = (
    qwen2_5_vl.QwenVL(tiny_policy.CONFIG),
    tiny_policy.params(tiny_policy.CONFIG),
  )
  rows = [
    [
      tiny_policy.encoded(rng, tiny_policy.CONFIG, 5, (4, 4)),
      tiny_policy.encoded(rng, tiny_policy.CONFIG, 7),
      tiny_policy.encoded(rng, tiny_policy.CONFIG, 4, (2, 4), (4, 2)),
    ],
    [tiny_policy.encoded(rng, tiny_policy.CONFIG, 9)],
  ]
  length = 40
  packed = jax.tree.map(
    lambda x: jnp.asarray(x[0]),
    tiny_policy.packer().pack_side_by_side(rows, 1, 2, length),
  )
  segments = np.zeros((2, length), np.int32)
  for row, texts in enumerate(rows):
    ends = np.cumsum([len(text.ids) for text in texts])
    segments[row, : ends[-1]] = 1 + np.searchsorted(
      ends, np.arange(ends[-1]), side="right"
    )
  states = jax.jit(
    lambda params: model.apply(
      {"params": params}, packed, jnp.asarray(segments), method="packed"
    )
  )(params)
  for row, texts in enumerate(rows):
    for n, text in enumerate(texts, 1):
      alone = jax.jit(
        lambda params, prompt: model.apply(
          {"params": params},
          prompt,
          jnp.ones(prompt.tokens.shape, jnp.int32),
          method="packed",
        )
      )(
        params,
        jax.tree.map(
          jnp.asarray,
          tiny_policy.pack(tiny_policy.CONFIG, [text], len(text.ids)),
        ),
      )
      np.testing.assert_allclose(
        states[row][segments[row] == n], alone[0], rtol=1e-4, atol=1e-4
      )
