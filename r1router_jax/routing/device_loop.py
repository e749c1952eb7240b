"""The routing loop as one program on the devices, with searches in a callback.

Each device answers its own questions, from the first plan to the last answer,
without a return to the host in between:

  prompts -> responses -> callback: parse, search, next prompts -> ...

The callback runs the same `router.RoutingLoop` as `router.run_routing`, and so
both give the same trajectories.  Shapes are those of the longest prompt; a
request whose prompts are shorter is generated in their bucket.  A request takes
as long as its longest response, since nothing refills rows here, as
`continuous_batching.py` does: this form is worth it if the host's work between
requests costs more.

The callback must not need the devices that wait for it.  A knowledge base whose
embedder computes there is refused: serve it by another process.

Axes:  B prompts of one device   G responses per prompt   T response tokens
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from r1router_jax.common.errors import UserError
from r1router_jax.common.images import BadImage
from r1router_jax.common.records import Question, Step, Trajectory
from r1router_jax.generation import group_decode
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.inputs.processor import EncodedPrompt, next_power_of_two
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.policy.policy import Policy, prompt_hashes
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.knowledge_base import KnowledgeBase
from r1router_jax.routing import router
from r1router_jax.routing.policy_requests import GenerationRequest
from r1router_jax.routing.router import RolloutOptions, RoutingLoop


class DeviceRequest(NamedTuple):
  """A `GenerationRequest` as arrays, of one shape in all requests of a program.

  Attributes:
    number: number of the request; -1 if there is no more.
    bucket: index of the shortest of the policy's prompt lengths that holds all
      prompts.
    prompts: the prompts, padded to the last of these lengths.
    prompt_hashes: hash of each prompt, see `policy.prompt_hashes`.
    members: index of the first response to each prompt.
    active: false on rows without a prompt.
    sampling: how the responses are drawn, for each prompt.
  """

  number: Int[Array, ""]
  bucket: Int[Array, ""]
  prompts: qwen2_5_vl.PromptBatch
  prompt_hashes: Int[Array, " B"]
  members: Int[Array, " B"]
  active: Bool[Array, " B"]
  sampling: SamplingParams


class CallbackState:
  """The host's part of one device's program: its loop and its next request.

  A request has B = `rows` prompts at most, and none has more (tokens, images,
  windows per image) than `room`.

  Attributes:
    loop: the loop over the questions of this device.
    request: the request that the device works on.
    trajectories: the trajectories, once the loop has ended.
    error: the exception that ended the loop, if any.
  """

  def __init__(self, loop: RoutingLoop, rows: int, room: Sequence[int]):
    self.loop = loop
    self.trajectories: list[Trajectory] = []
    self.error: Exception | None = None
    self._policy, self._rows, self._room = loop.policy, rows, room
    # Suspended at the request that the device works on.
    self._generator = loop.run()
    # An empty request gives the shapes, also if the loop never asks anything.
    self.request = self._collate(GenerationRequest(-1, [], [], GREEDY))
    self.request = self._advance(None)

  def respond(self, *arrays: np.ndarray) -> DeviceRequest:
    """Return the next request, given the responses to this one, [B, G, ...]."""
    active = (x[self.request.active] for x in arrays)
    responses = group_decode.SampledResponses(*active)
    self.request = self._advance(self._policy.decode(responses))
    return self.request

  def _advance(self, groups: list | None) -> DeviceRequest:
    """Run the loop up to its next request; a last one has number -1."""
    try:
      return self._collate(self._generator.send(groups))
    except StopIteration as end:
      self.trajectories = end.value
    except Exception as error:  # The program would change its type.
      self.error = error
    return self.request._replace(number=np.int32(-1))

  def _collate(self, request: GenerationRequest) -> DeviceRequest:
    """Return a request as arrays; rows without a prompt repeat the first."""
    processor, rows = self._policy.processor, self._rows
    prompts = [processor.encode(each) for each in request.prompts]
    # A device without prompts must still take part in the program.
    prompts = prompts or [_encode_plan(self._policy, Question("", "?"))]
    batch = processor.collate(prompts, 1, rows, self._check_room)
    length = max(processor.padded_length(prompt.ids) for prompt in prompts)
    # Rows without a prompt have hash 0; their responses are dropped.
    hashes, members = np.zeros((2, rows), np.int32)
    hashes[: len(prompts)] = prompt_hashes(prompts)
    members[: len(request.members)] = request.members
    return DeviceRequest(
      np.int32(request.number),
      np.int32(processor.lengths.index(length)),
      jax.tree.map(lambda x: x[0], batch),  # Without the axis of devices.
      hashes,
      members,
      np.arange(rows) < len(request.prompts),
      SamplingParams(*(np.full(rows, x) for x in request.sampling.validate())),
    )

  def _check_room(self, needed: Sequence[int]) -> Sequence[int]:
    """Return the room for a batch, the same for all requests."""
    if any(n > room for n, room in zip(needed, self._room, strict=True)):
      raise UserError(
        f"A prompt needs {list(needed)} (tokens, images, windows of an "
        f"image), and there is room for {list(self._room)}: drive this "
        "loop from the host."
      )
    return self._room


# States of programs that run now, by a number that programs can carry.
_CALLBACK_STATES: dict[int, CallbackState] = {}

_state_ids = itertools.count()


def run_routing_on_devices(
  policy: Policy,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  options: RolloutOptions = router.DEFAULT_OPTIONS,
) -> list[Trajectory]:
  """Run the routing loop on the devices; see `router.run_routing`.

  Raises:
    UserError: also if the policy is split over devices, or if a knowledge base
      would wait for the devices that wait for it.
  """
  mesh = mesh_lib.local_submesh(policy.mesh)
  _check_devices(kbs, mesh)
  options.sampling.validate()
  # Rows are responses: a group takes `group_size` of them.  Trajectories of one
  # question have a row each.
  shards, group_size = mesh.size, options.group_size
  questions_per_shard = max(
    policy.config.decode_batch_size // (group_size * options.trajectories), 1
  )
  rows = questions_per_shard * options.trajectories
  program = functools.partial(
    _device_program(
      policy.inference_model,
      group_size,
      policy.config.response_tokens[-1],
      policy.processor.lengths,
      mesh,
    ),
    policy.inference_params,
    jax.random.key_data(router.request_keys(key, options.max_steps)),
    policy.decode_constraints(options.method.stop),
  )
  # One retriever for all devices: its knowledge bases cache and lock.
  retrieve = retriever.make_retriever(kbs, options.k)
  # As many questions at a time as the devices have rows.
  trajectories, size = [], shards * questions_per_shard
  for first in range(0, len(questions), size):
    chunk = questions[first : first + size]
    # All requests of a chunk share one shape, and so one program.
    room = _max_prompt_shape(policy, chunk)
    loops = [
      RoutingLoop(policy, chunk[d::shards], retrieve, options, tuple(kbs))
      for d in range(shards)
    ]
    states = [CallbackState(loop, rows, room) for loop in loops]
    _run_program(program, states)
    parts = [state.trajectories for state in states]
    trajectories += router.merge_parts(parts, loops)
  return trajectories


# The drivers of the routing loop, by the name in a config or a flag.
ROUTING_LOOPS = {
  "host": router.run_routing,
  "halves": functools.partial(router.run_routing, in_flight=2),
  "fused": run_routing_on_devices,
}


def _check_devices(kbs: Mapping[str, KnowledgeBase], mesh: Mesh) -> None:
  """Raise a UserError if the loop cannot run on the devices of this host."""
  if mesh.size > mesh.shape[mesh_lib.DATA]:
    raise UserError(
      f"The policy is split over {dict(mesh.shape)}, and a fused loop wants "
      "it whole on each device: drive it from the host."
    )
  if retriever.is_collective(kbs):
    raise UserError(retriever.COLLECTIVE_ERROR)
  # A search on busy devices would wait for the program, which waits for it.
  for kind, kb in kbs.items():
    if set(kb.devices) & set(mesh.devices.flat):
      raise UserError(
        f"The {kind} knowledge base embeds on the devices that would wait for "
        "it.  Serve it by another process (python -m r1router_jax.serve_kb), "
        "or drive the loop from the host."
      )


def _run_program(program: Callable, states: Sequence[CallbackState]) -> None:
  """Run the loops of all devices to their ends, or raise what ended one."""
  # Programs carry numbers, so that they are compiled once for all runs.
  ids = [next(_state_ids) for _ in states]
  _CALLBACK_STATES.update(zip(ids, states, strict=True))
  # One row for each device.
  first = [state.request for state in states]
  requests = jax.tree.map(lambda *x: np.stack(x), *first)
  try:
    jax.block_until_ready(program(np.array(ids, np.int32), requests))
  finally:
    for state_id in ids:
      del _CALLBACK_STATES[state_id]
  # Raised here, since an exception within the program would lose its type.
  for state in states:
    if state.error:
      raise state.error


def _max_prompt_shape(
  policy: Policy, questions: Sequence[Question]
) -> list[int]:
  """Return the largest (tokens, images, windows per image) of any prompt.

  Images of the questions are known; passages have as many images as may be
  shown, each of the largest size.
  """
  prompts = []
  for question in questions:
    try:
      prompts.append(_encode_plan(policy, question))
    except (BadImage, PromptTooLong):
      pass  # The loop leaves out its steps, with a fault.
  # Shapes are counted and not collated, which would allocate the patches.
  vision = policy.config.model.vision
  grids = [image.grid for prompt in prompts for image in prompt.images]
  counts = [qwen2_5_vl.count_windows(*grid, vision) for grid in grids]
  # `Processor.collate` rounds up, too, so that few shapes are compiled.
  windows = next_power_of_two(max(counts)) if counts else 0
  # Images of passages are not known beforehand: room for the largest.
  if policy.config.passage_images:
    windows = max(windows, policy.processor.max_windows())
  images = max((len(prompt.images) for prompt in prompts), default=0)
  images += policy.config.passage_images
  return [policy.processor.lengths[-1], images, windows]


def _encode_plan(policy: Policy, question: Question) -> EncodedPrompt:
  """Return the first prompt on a question."""
  step = Step("", "plan", question)
  return policy.processor.encode(policy.config.build_prompt(step))


@functools.lru_cache(maxsize=4)
def _device_program(
  model: qwen2_5_vl.QwenVL,
  group_size: int,
  max_tokens: int,
  lengths: tuple[int, ...],
  mesh: Mesh,
) -> Callable:
  """Return the program that runs on all devices until their loops have ended.

  It takes parameters, key data, constraints, ids of callback states and their
  first requests, and returns the numbers of the last requests.
  """

  def sample_responses(length, params, constraints, key, request):
    # Only these fields have an axis of prompt tokens; images stay whole.
    fields = ("tokens", "mask", "positions", "image_token")
    shorter = {f: getattr(request.prompts, f)[..., :length] for f in fields}
    return group_decode.sample(
      model,
      params,
      request.prompts._replace(**shorter),
      group_decode.response_keys(
        key, request.prompt_hashes, group_size, request.members
      ),
      SamplingParams(*(jnp.repeat(x, group_size) for x in request.sampling)),
      constraints,
      request.active,
      max_tokens=max_tokens,
    )

  def run(params, key_data, constraints, state_id, request):
    # One branch per padded length, so that short prompts cost less.
    branches = [
      functools.partial(sample_responses, length, params, constraints)
      for length in lengths
    ]

    # 1. Generate in the request's bucket.  2. Parse, search and collate on the
    # host.
    def answer_request(request):
      key = jax.random.wrap_key_data(key_data[request.number])
      responses = jax.lax.switch(request.bucket, branches, key, request)
      shapes = jax.eval_shape(lambda: request)
      return io_callback(_call_back, shapes, state_id, *responses)

    def has_prompts(request):
      return request.number >= 0

    return jax.lax.while_loop(has_prompts, answer_request, request).number

  return mesh_lib.shard_map_over_data(run, mesh, shared=(0, 1, 2))


def _call_back(state_id: jax.Array, *responses: jax.Array) -> DeviceRequest:
  """Hand the responses of a device to its loop on the host."""
  state = _CALLBACK_STATES[int(state_id)]
  return state.respond(*map(np.asarray, responses))
