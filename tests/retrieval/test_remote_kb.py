"""A knowledge base behind HTTP finds what it does at home, or says why not."""

import signal
import threading

import pytest

from r1router_jax.common import http_client
from r1router_jax.common.records import Query
from r1router_jax.retrieval import remote_kb, retriever, search_api
from tests.retrieval import kb_servers


@pytest.fixture
def impatient(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE", 1.5)
  monkeypatch.setattr(http_client, "PAUSES", (0.01, 0.05))


def test_it_finds_what_it_does_at_home(monkeypatch):
  monkeypatch.setattr(remote_kb, "QUERIES", 3)  # Several requests.
  home = kb_servers.at_home()
  queries = [
    Query(text)
    for text in (
      "capital",
      "Chad",
      "red flag",
      "people of chad",
      "«é\u2028\x7f",
      "",
      "rome",
    )
  ]
  with kb_servers.served(home) as server:
    away = remote_kb.RemoteKB("text", server.address)
    assert len(away) == len(kb_servers.TEXTS) and away.devices == ()
    assert away.meta == server.served[1]
    assert away.search(queries, 3) == home.search(queries, 3)
    assert away.search([], 3) == []
    assert [len(a) for a in away.search(queries, 9)] == [4] * len(queries)


def test_search_r1s_own_server_serves_us(caplog):
  rows = [
    dict(document=dict(id=7, contents='"Chad"\nis large.'), score=0.5),
    dict(document=dict(contents="no title"), score=0.25),
    dict(document=dict(id="bad", contents="a\x00b"), score=0.1),
  ]

  def answer(path, body):
    if path != "/retrieve":
      return 404, {"detail": "Not Found"}
    assert body == dict(queries=["chad"], topk=3, return_scores=True)
    return 200, dict(result=[rows])

  with kb_servers.answering(answer) as address:
    away = remote_kb.RemoteKB("text", address)
    assert len(away) == 0
    (found,) = away.search([Query("chad")], 3)
    assert [(p.kb, p.text, p.score) for p in found] == [
      ("text", "Chad is large.", 0.5),
      ("text", "no title", 0.25),
    ]
    assert found[0].id == "7" and len(found[1].id) == 16
    assert "control character" in caplog.text and "'bad'" in caplog.text
    with pytest.raises(ValueError, match="no serve_kb"):
      remote_kb.RemoteKB("image", address)


GOOD = dict(document=dict(id="a", contents="b"), score=1.0)

WRONG = [
  ([], "result"),
  (dict(result=[]), "result"),
  (dict(result=[[GOOD] * 4]), "result"),
  (dict(result=[[dict(GOOD, score="1")]]), "score"),
  (dict(result=[[dict(GOOD, score=float("inf"))]]), "Infinity"),
  (
    dict(result=[[dict(document=dict(id="a", contents=" "), score=1)]]),
    "contents",
  ),
  (b"<html>", "JSON"),
]


@pytest.mark.parametrize(("said", "word"), WRONG)
def test_a_wrong_answer_is_an_error_and_no_passage(said, word, impatient):
  with kb_servers.answering(
    lambda path, body: (200, said) if body else (404, {})
  ) as address:
    away = remote_kb.RemoteKB("text", address)
    with pytest.raises(http_client.RetrievalError, match=word) as raised:
      away.search([Query("chad")], 3)
    assert address in str(raised.value) and "at try 3" in str(raised.value)


@pytest.mark.parametrize(("status", "tries"), [(400, 1), (302, 1), (500, 9)])
def test_what_is_refused_is_not_asked_again(status, tries, impatient):
  asked = []

  def answer(path, body):
    asked.append(path)
    return (status, {"error": "no"}) if body else (404, {})

  with kb_servers.answering(answer) as address:
    away = remote_kb.RemoteKB("text", address)
    with pytest.raises(http_client.RetrievalError, match=f"status {status}"):
      away.search([Query("chad")], 3)
  assert (len(asked) - 1 == 1) if tries == 1 else len(asked) > tries


def test_an_endless_answer_is_cut_off(monkeypatch, impatient):
  monkeypatch.setattr(http_client, "MAX_ANSWER", 1000)
  with kb_servers.answering(
    lambda path, body: (200, b'"' + b"a" * 5000 + b'"') if body else (404, {})
  ) as address:
    with pytest.raises(
      http_client.RetrievalError, match="more than 1,000 bytes"
    ):
      remote_kb.RemoteKB("text", address).search([Query("chad")], 3)


def test_other_passages_are_noticed(impatient):
  with kb_servers.served(kb_servers.at_home()) as server:
    away = remote_kb.RemoteKB("text", server.address)
    away.search([Query("chad")], 1)
    server.serve(kb_servers.at_home(texts=kb_servers.TEXTS[:2]))
    with pytest.raises(
      http_client.RetrievalError, match="others than at the st"
    ):
      away.search([Query("rome")], 1)


def test_nobody_there_is_said(impatient):
  with pytest.raises(
    http_client.RetrievalError, match=r"127.0.0.1:9: .*it runs"
  ):
    remote_kb.RemoteKB("text", "http://127.0.0.1:9")
  for address in ("ftp://a", "http://", "http://u:secret@h", "http://h?q=1"):
    with pytest.raises(ValueError, match="no address") as raised:
      remote_kb.RemoteKB("text", address)
    assert "secret" not in str(raised.value)


def test_places_are_named_by_kind():
  with kb_servers.served(kb_servers.at_home()) as server:
    found = retriever.open_kbs(f"text={server.address}", ["text"])
    assert len(found["text"]) == 4
    with pytest.raises(ValueError, match="one of kind text"):
      retriever.open_kbs(f"table={server.address}", ["table"])
  with pytest.raises(ValueError, match="place of each of text, table once"):
    retriever.open_kbs("text=a,text=b", ["text", "table"])


def test_titles_go_before_texts():
  assert search_api.text('"Chad"\nis large') == "Chad is large"
  assert search_api.text('""\nis large') == "is large"
  assert search_api.text("plain\ntext") == "plain\ntext"


@pytest.mark.slow
def test_a_server_may_be_killed_and_started_again(monkeypatch):
  monkeypatch.setattr(http_client, "PAUSES", (0.05, 0.5))
  child, (address,) = kb_servers.process()
  again = []
  try:
    away = remote_kb.RemoteKB("text", address)
    assert away.search([Query("rome")], 1)[0][0].id == "text/2"
    child.send_signal(signal.SIGKILL)
    child.wait()
    port = int(address.rsplit(":", 1)[1])
    restart = threading.Timer(
      1.0, lambda: again.append(kb_servers.process(ports=[port]))
    )
    restart.start()
    (found,) = away.search([Query("a red flag")], 1)  # Waits for it.
    assert found[0].id == "text/3"
    restart.join()
    again[0][0].terminate()
    assert again[0][0].communicate(timeout=20)[0].strip() == "ended"
    assert again[0][0].returncode == 0
  finally:
    for each in [child, *(a for a, _ in again)]:
      each.kill()
