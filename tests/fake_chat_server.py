"""A chat server for tests that answers in the schema of OpenAI."""

import contextlib

from tests.retrieval import kb_servers


def make_completion(text, tokens=7, **message):
  """Return an answer of one choice with `text`, and `message`'s fields."""
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


def turn_text(turn):
  """Return the text of a turn without its images."""
  parts = turn["content"]
  if isinstance(parts, str):
    return parts
  return "".join(part["text"] for part in parts if part["type"] == "text")


@contextlib.contextmanager
def serve_chat(say, answer=None, models=None):
  """Serve a model that writes `say(system, user text, body)`.

  Args:
    say: returns the text of a reply, or a whole answer.
    answer: (number of the request from 1, body) -> status and JSON, or None to
      let the model write.
    models: the list of models; by default it does not say whose server it is.

  Yields:
    The address with the model's name, and a list of the bodies of requests.
  """
  bodies = []

  def reply(path, body):
    # Clients ask for it when they are made.
    if path == "/v1/models":
      return 200, models or dict(data=[dict(id="some-model")])
    assert path == "/v1/chat/completions" and body["model"] == "some-model"
    # Recorded before any answer, so that retries count, too.
    bodies.append(body)
    if answer is not None:
      status_and_json = answer(len(bodies), body)
      if status_and_json is not None:
        return status_and_json
    system, *_, user = body["messages"]  # Between them stand examples.
    assert (system["role"], user["role"]) == ("system", "user")
    text = say(system["content"], turn_text(user), body)
    return 200, text if isinstance(text, dict) else make_completion(text)

  with kb_servers.serve_answers(reply) as address:
    yield f"openai:{address}/v1#some-model", bodies
