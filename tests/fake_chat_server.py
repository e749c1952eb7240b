"""A chat server for tests: a real one, in the schema of OpenAI."""

import contextlib

from tests.retrieval import kb_servers


def completion(text, tokens=7, **message):
  return dict(
    choices=[
      dict(
        index=0,
        finish_reason="stop",
        message=dict(role="assistant", content=text, **message),
      )
    ],
    usage=dict(prompt_tokens=1, completion_tokens=tokens),
  )


def text_of(turn):
  """The text of a turn, pictures left out."""
  parts = turn["content"]
  return (
    parts
    if isinstance(parts, str)
    else "".join(part["text"] for part in parts if part["type"] == "text")
  )


@contextlib.contextmanager
def chatting(say, answer=None):
  """A server whose model says `say(system, user text, body)`.

  `answer(number, body)`, if given, is status and JSON of a request, or None.
  Yields the address with the model's name, and the bodies that came.
  """
  bodies = []

  def reply(path, body):
    if path == "/v1/models":
      return 200, dict(data=[dict(id="some-model")])
    assert path == "/v1/chat/completions" and body["model"] == "some-model"
    bodies.append(body)
    other = answer(len(bodies), body) if answer else None
    if other is not None:
      return other
    system, *_, user = body["messages"]  # Between them, examples.
    assert (system["role"], user["role"]) == ("system", "user")
    said = say(system["content"], text_of(user), body)
    return 200, said if isinstance(said, dict) else completion(said)

  with kb_servers.answering(reply) as address:
    yield f"openai:{address}/v1#some-model", bodies
