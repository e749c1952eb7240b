"""Tests of embedders behind HTTP, with servers in this process."""

import contextlib
import json

import numpy as np
import pytest

from r1router_jax.common import http_client
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval import kb_meta
from r1router_jax.retrieval.encoders import (
  batched_encoder,
  http_encoders,
  registry,
)
from tests.raw_http_server import make_response, serve_raw
from tests.retrieval import kb_servers
from tests.retrieval.fakes import WordEmbedder


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 1.5)
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))
  monkeypatch.delenv(http_client.API_KEY_VARIABLE, raising=False)


def embed_words(texts):
  return WordEmbedder()([Query(text) for text in texts]).tolist()


def openai_server(change=lambda rows: rows):
  """Return an answering function; `change` alters the rows of its answers."""

  def answer(path, body):
    assert path == "/v1/embeddings" and body["model"] == "some-model"
    assert len(body["input"]) <= http_encoders.TEXTS_PER_REQUEST
    vectors = enumerate(embed_words(body["input"]))
    rows = [dict(index=i, embedding=vector) for i, vector in vectors]
    # In reverse: the order of an answer means nothing.
    return 200, dict(data=change(rows[::-1]))

  return answer


@contextlib.contextmanager
def serve_openai(change=lambda rows: rows):
  """Serve such answers; yields the server's address with a model's name."""
  with kb_servers.serve_answers(openai_server(change)) as address:
    yield f"{address}/v1#some-model"


def tei_server(path, body):
  assert path == "/embed" and body["truncate"] is True
  return 200, embed_words(body["inputs"])


# More than two requests, with queries, a table and a text.
ITEMS = [Query(f"Flag {i} ") for i in range(70)] + [
  Passage("a", "table", "[Header]Country[Rows][Row]Chad[sep]red"),
  Passage("b", "text", "Chad is large"),
]


READ = [f"Flag {i}" for i in range(70)]
READ += [". Country. . Chad, red", "Chad is large"]


def test_both_apis_give_vectors_in_order():
  wanted = embed_words(READ)
  with serve_openai() as weights:
    embed = registry.EMBEDDERS["openai"](weights)
    np.testing.assert_allclose(embed(ITEMS), wanted, atol=1e-6)
    assert embed.width == 32 and embed([]).shape == (0, 32)
    # The same weights at another time.
    again = registry.EMBEDDERS["openai"](weights)
    assert again.fingerprint == embed.fingerprint
  with kb_servers.serve_answers(tei_server) as address:
    other = registry.EMBEDDERS["tei"](address)
    np.testing.assert_allclose(other(ITEMS), wanted, atol=1e-6)


def test_server_reads_capitals():
  """Whether its model is cased, only the server knows."""
  read = []

  def answer(path, body):
    read.extend(body["inputs"])
    return tei_server(path, body)

  with kb_servers.serve_answers(answer) as address:
    registry.EMBEDDERS["tei"](address)(ITEMS)
  assert sorted(read[-len(READ) :]) == sorted(READ)


def test_other_weights_have_another_fingerprint():
  def reverse_vectors(rows):
    return [dict(row, embedding=row["embedding"][::-1]) for row in rows]

  # Two servers whose vectors differ in the order of their numbers.
  with serve_openai() as weights, serve_openai(reverse_vectors) as others:
    one, other = map(http_encoders.openai_encoder, (weights, others))
  assert one.fingerprint != other.fingerprint


def embedding(vector):
  return lambda rows: [dict(row, embedding=vector) for row in rows]


# Changes of an answer that must not pass, by name.
WRONG = {
  "a row is missing": lambda rows: rows[1:],
  "a number twice": lambda rows: [*rows[1:], rows[1]],
  "no width": embedding([]),
  "not finite": embedding([1e39] * 32),
  "two widths": lambda rows: [dict(rows[0], embedding=[1.0]), *rows[1:]],
  "many digits": embedding([10**400] * 32),
  "truth": embedding([True] * 32),
  "words": embedding(["a"] * 32),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_vectors_are_refused(name):
  with serve_openai(WRONG[name]) as weights:
    with pytest.raises(http_client.RemoteServiceError, match="at try 3"):
      http_encoders.openai_encoder(weights)


def test_images_and_missing_model_names_are_refused():
  with kb_servers.serve_answers(tei_server) as address:
    embed = http_encoders.tei_encoder(address)
    with pytest.raises(ValueError, match="embeds texts alone"):
      embed([Query("a", "flag.png")])
    # OpenAI's API needs the name of a model.
    with pytest.raises(ValueError, match="names no model"):
      http_encoders.openai_encoder(address)


def test_api_key_is_sent_only_where_the_user_says(monkeypatch, caplog):
  monkeypatch.setenv(http_client.API_KEY_VARIABLE, "very-secret")
  monkeypatch.setattr(http_client, "_allowed_places", set())

  def act(number, body, connection):
    _, rows = openai_server()("/v1/embeddings", json.loads(body))
    return make_response(json.dumps(rows).encode())

  with serve_raw(act) as (address, heads):
    weights = f"{address}/v1#some-model"
    http_encoders.openai_encoder(weights)
    http_client.allow_addresses([weights])
    http_encoders.openai_encoder(weights)
  assert ["Bearer very-secret" in head for head in heads] == [False, True]
  # An address that is not local, without encryption, is worth a warning.
  http_client.allow_addresses(["http://example.org"])
  http_client.authorization_header("http://example.org")
  assert "unencrypted" in caplog.text and "very-secret" not in caplog.text


def test_server_that_wants_a_key_names_its_variable():
  with kb_servers.serve_answers(lambda *_: (401, {})) as address:
    advice = "Set OPENAI_API_KEY to its key"
    with pytest.raises(http_client.RemoteServiceError, match=advice):
      http_encoders.openai_encoder(f"{address}/v1#some-model")


def stretch(rows):
  for row in rows:
    row["embedding"] = [3 * x for x in row["embedding"]]
  return rows


@pytest.mark.parametrize("name, length", [("openai", 1), ("openai_raw", 3)])
def test_vectors_have_length_one_unless_told_otherwise(name, length):
  with serve_openai(stretch) as weights:
    found = registry.EMBEDDERS[name](weights)(ITEMS)
  wanted = length * np.array(embed_words(READ))
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  # A folder that was built before vectors were scaled has them as they came.
  stored = kb_meta.to_stored_embedder(name)
  assert (stored == "openai") == (name == "openai_raw")
  assert kb_meta.from_stored_embedder(stored) == name


def test_texts_that_are_too_long_are_cut_and_named(caplog):
  accepted, limit = [], 50

  def answer(path, body):
    if max(map(len, body["input"])) > limit:
      return 400, dict(error="too long")
    accepted.extend(body["input"])
    return openai_server()(path, body)

  items = [Passage(f"p{i}", "text", f"chad {i}") for i in range(32)]
  items[9] = Passage("huge", "text", "red flag " * 40)
  with kb_servers.serve_answers(answer) as address:
    embed = http_encoders.openai_encoder(f"{address}/v1#some-model")
    with batched_encoder.collect_cut() as cut_ids:
      found = embed(items)
    assert cut_ids == ["huge"]
    # No more than half of what the server takes is lost of it.
    (cut,) = [text for text in accepted if text.startswith("red flag")]
    assert limit / 2 < len(cut) <= limit
    read = [cut if item.id == "huge" else item.text for item in items]
    np.testing.assert_allclose(found, embed_words(read), atol=1e-6)
    assert "1 texts" in caplog.text and "'huge'" in caplog.text
    # A server that refuses everything does not want shorter texts.
    limit = -1
    with pytest.raises(http_client.RemoteServiceError, match="too long"):
      embed(items[:1])
