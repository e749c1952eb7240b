"""A knowledge base behind HTTP answers as a local one, or raises."""

import signal
import threading

import pytest

from r1router_jax.common import http_client
from r1router_jax.common.http_client import RemoteServiceError
from r1router_jax.common.records import Query
from r1router_jax.retrieval import remote_kb, retriever, search_api
from tests.retrieval import kb_servers


@pytest.fixture
def fast_retries(monkeypatch):
  monkeypatch.setattr(http_client, "DEADLINE_SECONDS", 1.5)
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.01, 0.05))


def test_remote_kb_finds_what_the_local_one_does(monkeypatch):
  # Makes several requests of the queries.
  monkeypatch.setattr(remote_kb, "MAX_QUERIES_PER_REQUEST", 3)
  texts = ["capital", "Chad", "red flag", "people of chad", "«é\u2028\x7f", ""]
  queries = [Query(text) for text in [*texts, "rome"]]
  local = kb_servers.make_kb()
  with kb_servers.serve_kb_locally(local) as server:
    remote = remote_kb.RemoteKB("text", server.address)
    assert len(remote) == len(kb_servers.TEXTS) and remote.devices == ()
    assert remote.meta == server.health
    assert remote.search(queries, 3) == local.search(queries, 3)
    assert remote.search([], 3) == []
    assert [len(found) for found in remote.search(queries, 9)] == [4] * 7


def test_server_of_search_r1_can_be_used(caplog):
  rows = [
    {"document": {"id": 7, "contents": '"Chad"\nis large.'}, "score": 0.5},
    {"document": {"contents": "no title"}, "score": 0.25},
    {"document": {"id": "bad", "contents": "a\x00b"}, "score": 0.1},
    {"document": {"id": [1], "contents": "a"}, "score": 0.1},
  ]

  def answer(path, body):
    if path != "/retrieve":
      return 404, {"detail": "Not Found"}
    assert body == {"queries": ["chad"], "topk": 4, "return_scores": True}
    return 200, {"result": [rows]}

  with kb_servers.serve_answers(answer) as address:
    remote = remote_kb.RemoteKB("text", address)
    assert len(remote) == 0
    (found,) = remote.search([Query("chad")], 4)
    assert [(p.kb, p.text, p.score) for p in found] == [
      ("text", "Chad is large.", 0.5),
      ("text", "no title", 0.25),
    ]
    assert found[0].id == "7" and len(found[1].id) == 16
    assert "control character" in caplog.text and "'bad'" in caplog.text
    assert '"id" is a list' in caplog.text
    with pytest.raises(ValueError, match="no serve_kb"):
      remote_kb.RemoteKB("image", address)


ROW = {"document": {"id": "a", "contents": "b"}, "score": 1.0}


def make_row(**changes):
  return {"result": [[ROW | changes]]}


@pytest.mark.parametrize(
  ("response", "word"),
  [
    ([], "got `array`"),
    ({"result": []}, "no 1 lists of at most 3"),
    ({"result": [[ROW] * 4]}, "no 1 lists of at most 3"),
    *((make_row(score=score), "score") for score in ("1", True, 10**400)),
    (make_row(score=float("inf")), "malformed"),
    # It is no product of vectors, and would overflow in sums.
    (make_row(score=1e300), "score"),
    (make_row(document="b"), "document"),
    (make_row(document={"id": "a", "contents": " "}), "contents"),
    # Three passages of a megabyte each, escaped, and no more.
    ({"result": [[]], "more": "a" * 7_000_000}, "more than 6,356,992 bytes"),
  ],
)
def test_invalid_response_raises(response, word, fast_retries):
  def answer(path, body):  # Without GET /health.
    return (200, response) if body else (404, {})

  with kb_servers.serve_answers(answer) as address:
    remote = remote_kb.RemoteKB("text", address)
    with pytest.raises(RemoteServiceError, match=word) as raised:
      remote.search([Query("chad")], 3)
    assert address in str(raised.value) and "at try 3" in str(raised.value)


def test_changed_passages_are_noticed(fast_retries):
  with kb_servers.serve_kb_locally(kb_servers.make_kb()) as server:
    remote = remote_kb.RemoteKB("text", server.address)
    remote.search([Query("chad")], 1)
    server.set_kb(kb_servers.make_kb(texts=kb_servers.TEXTS[:2]))
    with pytest.raises(RemoteServiceError, match="others than at the st"):
      remote.search([Query("rome")], 1)


def test_address_without_a_server_raises(fast_retries):
  with pytest.raises(RemoteServiceError, match=r"127.0.0.1:9: .*it runs"):
    remote_kb.RemoteKB("text", "http://127.0.0.1:9")


def test_remote_kbs_are_opened_by_kind():
  with kb_servers.serve_kb_locally(kb_servers.make_kb()) as server:
    found = retriever.open_kbs(f"text={server.address}", ["text"])
    assert len(found["text"]) == 4
    with pytest.raises(ValueError, match="one of kind text"):
      retriever.open_kbs(f"table={server.address}", ["table"])


def test_title_becomes_part_of_the_text():
  assert search_api.passage_text('"Chad"\nis large') == "Chad is large"
  assert search_api.passage_text('""\nis large') == "is large"
  assert search_api.passage_text("plain\ntext") == "plain\ntext"


@pytest.mark.slow
def test_server_may_be_killed_and_restarted(monkeypatch):
  monkeypatch.setattr(http_client, "RETRY_PAUSES", (0.05, 0.5))
  child, (address,) = kb_servers.start_process()
  children = [child]
  try:
    remote = remote_kb.RemoteKB("text", address)
    assert remote.search([Query("rome")], 1)[0][0].id == "text/2"
    child.send_signal(signal.SIGKILL)
    child.wait()
    port = int(address.rsplit(":", 1)[1])

    def restart():
      children.append(kb_servers.start_process(ports=[port])[0])

    timer = threading.Timer(1.0, restart)
    timer.start()
    # The search waits for the new server.
    (found,) = remote.search([Query("a red flag")], 1)
    assert found[0].id == "text/3"
    timer.join()
    children[1].terminate()
    assert children[1].communicate(timeout=20)[0].strip() == "ended"
    assert children[1].returncode == 0
  finally:
    for each in children:
      each.kill()
