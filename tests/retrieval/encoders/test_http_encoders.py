"""Tests of embedders behind HTTP, with servers in this process."""

import numpy as np
import pytest

from r1router_jax.common import http_client
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval.encoders import http_encoders, registry
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 1.5)
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))
  monkeypatch.delenv(http_encoders.API_KEY_VARIABLE, raising=False)


def embed_words(texts):
  return WordEmbedder()([Query(text) for text in texts]).tolist()


def openai_server(change=lambda rows: rows):
  """Return an answering function; `change` alters the rows of its answers."""

  def answer(path, body):
    assert path == "/v1/embeddings" and body["model"] == "some-model"
    assert len(body["input"]) <= http_encoders.TEXTS_PER_REQUEST
    rows = [
      dict(index=i, embedding=vector)
      for i, vector in enumerate(embed_words(body["input"]))
    ]
    # In reverse: the order of an answer means nothing.
    return 200, dict(data=change(rows[::-1]))

  return answer


def tei_server(path, body):
  assert path == "/embed" and body["truncate"] is True
  return 200, embed_words(body["inputs"])


# More than two requests, with queries, a table and a text.
ITEMS = [Query(f"Flag {i} ") for i in range(70)] + [
  Passage("a", "table", "[Header]Country[Rows][Row]Chad[sep]red"),
  Passage("b", "text", "Chad is large"),
]


def wanted_vectors():
  read = [f"flag {i}" for i in range(70)] + [
    ". Country. . Chad, red",
    "Chad is large",
  ]
  return np.array(embed_words(read), np.float32)


def test_both_apis_give_vectors_in_order():
  with kb_servers.serve_answers(openai_server()) as address:
    embed = registry.EMBEDDERS["openai"](f"{address}/v1#some-model")
    np.testing.assert_allclose(embed(ITEMS), wanted_vectors(), atol=1e-6)
    assert embed.width == 32 and embed([]).shape == (0, 32)
    # The same weights at another time.
    again = registry.EMBEDDERS["openai"](f"{address}/v1#some-model")
    assert again.fingerprint == embed.fingerprint
  with kb_servers.serve_answers(tei_server) as address:
    other = registry.EMBEDDERS["tei"](address)
    np.testing.assert_allclose(other(ITEMS), wanted_vectors(), atol=1e-6)


def test_other_weights_have_another_fingerprint():
  def reverse_vectors(rows):
    return [dict(row, embedding=row["embedding"][::-1]) for row in rows]

  # Two servers whose vectors differ in the order of their numbers.
  found = []
  for change in (lambda rows: rows, reverse_vectors):
    with kb_servers.serve_answers(openai_server(change=change)) as address:
      found.append(
        http_encoders.openai_encoder(f"{address}/v1#some-model").fingerprint
      )
  assert found[0] != found[1]


# Changes of an answer that must not pass, by name.
WRONG = {
  "a row is missing": lambda rows: rows[1:],
  "a number twice": lambda rows: [*rows[1:], rows[1]],
  "no width": lambda rows: [dict(row, embedding=[]) for row in rows],
  "not finite": lambda rows: [dict(row, embedding=[1e39] * 32) for row in rows],
  "two widths": lambda rows: [dict(rows[0], embedding=[1.0]), *rows[1:]],
  "words": lambda rows: [dict(row, embedding=["a"] * 32) for row in rows],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_vectors_are_refused(name):
  with kb_servers.serve_answers(openai_server(change=WRONG[name])) as address:
    with pytest.raises(http_client.RemoteServiceError, match="at try 3"):
      http_encoders.openai_encoder(f"{address}/v1#some-model")


def test_images_and_missing_model_names_are_refused():
  with kb_servers.serve_answers(tei_server) as address:
    embed = http_encoders.tei_encoder(address)
    with pytest.raises(ValueError, match="embeds texts alone"):
      embed([Query("a", "flag.png")])
    # OpenAI's API needs the name of a model.
    with pytest.raises(ValueError, match="names no model"):
      http_encoders.openai_encoder(address)


def test_api_key_is_sent_and_never_logged(monkeypatch, caplog):
  monkeypatch.setenv(http_encoders.API_KEY_VARIABLE, "very-secret")
  at = http_client.JsonHttpClient(
    "http://127.0.0.1:9", http_encoders.authorization_header("http://127.0.0.1")
  )
  assert at._headers["Authorization"] == "Bearer very-secret"
  # An address that is not local, without encryption, is worth a warning.
  http_encoders.authorization_header("http://example.org")
  assert "unencrypted" in caplog.text and "very-secret" not in caplog.text
