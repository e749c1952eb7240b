"""Embedders behind HTTP give the vectors that the service sends, in order."""

import numpy as np
import pytest

from r1router_jax.common import http_client
from r1router_jax.common.records import Passage, Query
from r1router_jax.retrieval.encoders import http_encoders, registry
from tests.retrieval import kb_servers
from tests.retrieval.fakes import Words


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE", 1.5)
  monkeypatch.setattr(http_client, "PAUSES", (0.01, 0.05))
  monkeypatch.delenv(http_encoders.KEY, raising=False)


def vectors(texts):
  return Words()([Query(text) for text in texts]).tolist()


def openai(seen=None, change=lambda rows: rows):
  def answer(path, body):
    assert path == "/v1/embeddings" and body["model"] == "some-model"
    assert len(body["input"]) <= http_encoders.TEXTS
    if seen is not None:
      seen.extend(body["input"])
    rows = [
      dict(index=i, embedding=vector)
      for i, vector in enumerate(vectors(body["input"]))
    ]
    return 200, dict(data=change(rows[::-1]))

  return answer


def tei(path, body):
  assert path == "/embed" and body["truncate"] is True
  return 200, vectors(body["inputs"])


ITEMS = [Query(f"Flag {i} ") for i in range(70)] + [
  Passage("a", "table", "[Header]Country[Rows][Row]Chad[sep]red"),
  Passage("b", "text", "Chad is large"),
]


def wanted():
  read = [f"flag {i}" for i in range(70)] + [
    ". Country. . Chad, red",
    "Chad is large",
  ]
  return np.array(vectors(read), np.float32)


def test_both_schemas_give_vectors_in_order():
  with kb_servers.answering(openai()) as address:
    embed = registry.EMBEDDERS["openai"](f"{address}/v1#some-model")
    np.testing.assert_allclose(embed(ITEMS), wanted(), atol=1e-6)
    assert embed.width == 32 and embed([]).shape == (0, 32)
    again = registry.EMBEDDERS["openai"](f"{address}/v1#some-model")
    assert again.fingerprint == embed.fingerprint
  with kb_servers.answering(tei) as address:
    other = registry.EMBEDDERS["tei"](address)
    np.testing.assert_allclose(other(ITEMS), wanted(), atol=1e-6)


def test_other_weights_have_another_fingerprint():
  def turned(rows):
    return [dict(row, embedding=row["embedding"][::-1]) for row in rows]

  found = []
  for change in (lambda rows: rows, turned):
    with kb_servers.answering(openai(change=change)) as address:
      found.append(http_encoders.openai(f"{address}/v1#some-model").fingerprint)
  assert found[0] != found[1]


WRONG = {
  "a row is missing": lambda rows: rows[1:],
  "a number twice": lambda rows: [*rows[1:], rows[1]],
  "no width": lambda rows: [dict(row, embedding=[]) for row in rows],
  "not finite": lambda rows: [dict(row, embedding=[1e39] * 32) for row in rows],
  "two widths": lambda rows: [dict(rows[0], embedding=[1.0]), *rows[1:]],
  "words": lambda rows: [dict(row, embedding=["a"] * 32) for row in rows],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_vectors_are_an_error(name):
  with kb_servers.answering(openai(change=WRONG[name])) as address:
    with pytest.raises(http_client.RetrievalError, match="at try 3"):
      http_encoders.openai(f"{address}/v1#some-model")


def test_pictures_and_missing_names_are_refused():
  with kb_servers.answering(tei) as address:
    embed = http_encoders.tei(address)
    with pytest.raises(ValueError, match="embeds texts alone"):
      embed([Query("a", "flag.png")])
    with pytest.raises(ValueError, match="names no model"):
      http_encoders.openai(address)


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
  monkeypatch.setenv(http_encoders.KEY, "very-secret")
  at = http_client.Service(
    "http://127.0.0.1:9", http_encoders.authorisation("http://127.0.0.1")
  )
  assert at._headers["Authorization"] == "Bearer very-secret"
  http_encoders.authorisation("http://example.org")  # Warns.
  assert "unencrypted" in caplog.text and "very-secret" not in caplog.text
