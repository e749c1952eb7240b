"""The routing loop as one program: drawing, and searching by a callback.

Each device walks its own questions, from the first plan to the last answer,
without the host's turn in between:

  prompts -> responses -> callback: parse, search, next prompts -> ...

The callback is the loop that `router.route` drives, and so both give the same
trajectories.  Shapes are those of the longest prompt; a phase
whose prompts are shorter is drawn in their bucket.  A phase lasts as long as
its longest response, since nothing refills rows here (`batching.py`): this form
is worth it where the host's turns between phases cost more.

What the callback does must not need the devices that wait for it.  A knowledge
base whose embedder computes there is refused: serve it by another process.

Axes:  D devices   B prompts of one   G responses per prompt   T response tokens
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

from r1router_jax.common.images import BadImage
from r1router_jax.common.records import MAX_HOPS, Question, Step, Trajectory
from r1router_jax.generation import group_decode
from r1router_jax.generation.token_sampling import GREEDY, SamplingParams
from r1router_jax.inputs.processor import Encoded
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.models import qwen2_5_vl
from r1router_jax.parallel import mesh as mesh_lib
from r1router_jax.policy import policy
from r1router_jax.retrieval import retriever
from r1router_jax.retrieval.retriever import KnowledgeBase
from r1router_jax.routing import policy_requests, router


class Asked(NamedTuple):
  """A phase as the program sees it.

  Attributes:
    number: of the phase; -1 where there is no more.
    bucket: which of the policy's prompt lengths holds all its prompts.
    prompt: packed to the last of these lengths.
    names: of the prompts, see `policy.names`.
    live: false on rows without a prompt.
    method: how the responses are drawn.
  """

  number: Int[Array, ""]
  bucket: Int[Array, ""]
  prompt: qwen2_5_vl.Prompt
  names: Int[Array, " B"]
  live: Bool[Array, " B"]
  method: SamplingParams


class _Host:
  """The questions of one device: what the callback knows and does."""

  def __init__(
    self,
    of: policy.Policy,
    walker: policy_requests.Walker,
    rows: int,
    needs: Sequence[int],
  ):
    self._policy, self._walker, self._rows = of, walker, rows
    self._needs = needs
    self.found: list[Trajectory] = []
    self.error: Exception | None = None
    self.asked = self._pack(policy_requests.Phase(-1, [], GREEDY))
    self.asked = self._next(None)

  def __call__(self, *drawn: np.ndarray) -> Asked:
    """The next phase, after responses to this one, leaves [B, G, ...]."""
    drawn = group_decode.Drawn(*(x[self.asked.live] for x in drawn))
    self.asked = self._next(self._policy.read(drawn))
    return self.asked

  def _next(self, groups: list | None) -> Asked:
    try:
      phase = self._walker.send(groups)
      return self._pack(phase)
    except StopIteration as end:
      self.found = end.value
    except Exception as error:  # It would lose its kind in the program.
      self.error = error
    return self.asked._replace(number=np.int32(-1))

  def _pack(self, phase: policy_requests.Phase) -> Asked:
    packer, rows = self._policy.packer, self._rows
    prompts = [packer.encode(each) for each in phase.prompts] or [
      _blank(self._policy)
    ]
    packed = packer.pack(prompts, 1, rows, self._room)
    column = lambda x, kind: np.full(rows, x, kind)
    names = column(0, np.int32)
    names[: len(prompts)] = policy.names(prompts)
    return Asked(
      np.int32(phase.number),
      np.int32(
        packer.lengths.index(
          max(packer.length(prompt.ids) for prompt in prompts)
        )
      ),
      jax.tree.map(lambda x: x[0], packed),
      names,
      np.arange(rows) < len(phase.prompts),
      SamplingParams(
        *map(
          column, phase.method, (np.float32, np.int32, np.float32, np.float32)
        )
      ),
    )

  def _room(self, needs: Sequence[int]) -> Sequence[int]:
    """The same for all phases."""
    if any(need > room for need, room in zip(needs, self._needs, strict=True)):
      raise ValueError(
        f"A prompt needs {list(needs)} (tokens, pictures, windows of a "
        f"picture), and there is room for {list(self._needs)}: drive this "
        "loop from the host."
      )
    return self._needs


_HOSTS: dict[int, _Host] = {}  # Of programs that run now.

_numbers = itertools.count()


def route(
  of: policy.Policy,
  kbs: Mapping[str, KnowledgeBase],
  questions: Sequence[Question],
  key: jax.Array,
  *,
  by: policy_requests.Approach | None = None,
  max_steps: int = MAX_HOPS,
  k: int | Mapping[str, int] = 1,
  method: SamplingParams = GREEDY,
  members: int = 1,
  keep: policy_requests.Keep = lambda *of: None,
) -> list[Trajectory]:
  """As `router.route`.

  Raises:
    ValueError: also where the policy is split over devices, and where a
      knowledge base would wait for the devices that wait for it.
  """
  mesh = mesh_lib.here(of.mesh)
  _check(kbs, mesh)
  method.validate()
  by = by or policy_requests.Approach(router.loop)
  parts, rows = mesh.size, max(of.settings.batch_rows // members, 1)
  run = functools.partial(
    _program(
      of.sampler[0],
      members,
      of.settings.response_tokens[-1],
      of.packer.lengths,
      mesh,
    ),
    of.sampler[1],
    jax.random.key_data(router.phase_keys(key, max_steps)),
    of.words(by.stop),
  )
  found = []
  for first in range(0, len(questions), parts * rows):
    chunk = questions[first : first + parts * rows]
    needs, kept = _needs(of, chunk), [[] for _ in range(parts)]
    hosts = [
      _Host(
        of,
        by.loop(
          of,
          chunk[d::parts],
          retriever.retriever(kbs, k),
          max_steps=max_steps,
          method=method,
          keep=lambda *step, to=kept[d]: to.append(step),
        ),
        rows,
        needs,
      )
      for d in range(parts)
    ]
    _walk(run, hosts)
    whole = [None] * len(chunk)
    for d, host in enumerate(hosts):
      whole[d::parts] = host.found
      for step in kept[d]:
        keep(*step)
    found += whole
  return found


# Who drives the routing loop, by what a config or a flag says.
LOOPS = {
  "host": router.route,
  "halves": functools.partial(router.route, in_flight=2),
  "fused": route,
}


def _check(kbs: Mapping[str, KnowledgeBase], mesh: Mesh) -> None:
  """Refuses what cannot be fused."""
  if mesh.size > mesh.shape[mesh_lib.DATA]:
    raise ValueError(
      f"The policy is split over {dict(mesh.shape)}, and a fused loop wants "
      "it whole on each device: drive it from the host."
    )
  if retriever.together(kbs):
    raise ValueError(retriever.ONE_LOOP)
  for kb, base in kbs.items():
    if set(base.devices) & set(mesh.devices.flat):
      raise ValueError(
        f"The {kb} knowledge base embeds on the devices that would wait for "
        "it.  Serve it by another process (python -m r1router_jax.serve_kb), "
        "or drive the loop from the host."
      )


def _walk(run: Callable, hosts: Sequence[_Host]) -> None:
  """Has each host's questions walked by a device.

  Raises:
    Exception: what a callback raised.
  """
  numbers = [next(_numbers) for _ in hosts]
  _HOSTS.update(zip(numbers, hosts, strict=True))
  try:
    jax.block_until_ready(
      run(
        np.array(numbers, np.int32),
        jax.tree.map(lambda *x: np.stack(x), *[h.asked for h in hosts]),
      )
    )
  finally:
    for number in numbers:
      del _HOSTS[number]
  for host in hosts:
    if host.error:
      raise host.error


def _needs(of: policy.Policy, questions: Sequence[Question]) -> list[int]:
  """Room for any prompt: the longest, with as many pictures as there can be.

  The questions' are known, the passages' are not.
  """
  needs, read, shown = [], [], of.settings.passage_pictures
  for question in questions:
    try:
      read.append(
        of.packer.encode(of.settings.conversation(Step("", "plan", question)))
      )
    except (BadImage, PromptTooLong):
      pass  # Its step is left out, with a fault, by the loop.
  read = read or [_blank(of)]
  of.packer.pack(read, 1, len(read), lambda need: needs.extend(need) or need)
  tokens, pictures, windows = of.packer.lengths[-1], *needs[1:]
  return [
    tokens,
    pictures + shown,
    max(windows, of.packer.windows() if shown else 0),
  ]


def _blank(of: policy.Policy) -> Encoded:
  """A prompt for devices that have none."""
  return of.packer.encode(
    of.settings.conversation(Step("", "plan", Question("", "?")))
  )


@functools.lru_cache(maxsize=4)
def _program(
  model: qwen2_5_vl.QwenVL,
  members: int,
  tokens: int,
  lengths: tuple[int, ...],
  mesh: Mesh,
):
  """(params, keys, words, numbers of hosts, first phases) -> last numbers."""

  def answer(number, *drawn):
    return _HOSTS[int(number)](*map(np.asarray, drawn))

  def run(params, keys, words, number, asked):
    def respond(asked, length):
      prompt = asked.prompt._replace(
        **{
          name: getattr(asked.prompt, name)[..., :length]
          for name in ("tokens", "mask", "positions", "picture")
        }
      )
      key = jax.random.wrap_key_data(keys[asked.number])
      return group_decode.sample(
        model,
        params,
        prompt,
        group_decode.keys(key, asked.names, members),
        SamplingParams(*(jnp.repeat(x, members) for x in asked.method)),
        words,
        asked.live,
        tokens=tokens,
      )

    def turn(asked):
      drawn = jax.lax.switch(
        asked.bucket,
        [functools.partial(respond, length=length) for length in lengths],
        asked,
      )
      return io_callback(answer, jax.eval_shape(lambda: asked), number, *drawn)

    return jax.lax.while_loop(
      lambda asked: asked.number >= 0, turn, asked
    ).number

  return mesh_lib.each_part(run, mesh, shared=(0, 1, 2))
