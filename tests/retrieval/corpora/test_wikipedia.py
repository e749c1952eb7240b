import bz2
import gzip
import html
import json
import random
import time

import pytest

from r1router_jax.common.row_files import RejectedRow, RowError
from r1router_jax.retrieval.corpora import wikipedia
from tests.retrieval.corpora import plain_reader

# Output of wikiextractor 3.1.0 for a small dump, without and with --json.
DOCS = b"""\
<doc id="12" url="https://en.wikipedia.org/wiki?curid=12" title="Chad">
Chad

Chad is wide &amp; 5 &gt; 3, a &lt;b&gt; tag &lt;doc&gt; &lt;/doc&gt;.\x20
History.
It has one history and many.
&lt;/doc&gt;
end "quoted" &amp; more

</doc>
<doc id="13" url="https://en.wikipedia.org/wiki?curid=13" \
title="Tom &amp; "Jerry" &lt;x&gt; (disambiguation)">
Tom &amp; "Jerry" &lt;x&gt; (disambiguation)

Short one here.

</doc>
<doc id="15" url="https://en.wikipedia.org/wiki?curid=15" title="Empty">
Empty



</doc>
"""

LINES = rb"""
{"id": "12", "revid": "102", "url": "https://en.wikipedia.org/wiki?curid=12", "title": "Chad", "text": "Chad is wide &amp; 5 &gt; 3, a &lt;b&gt; tag &lt;doc&gt; &lt;/doc&gt;. \nHistory.\nIt has one history and many.\n&lt;/doc&gt;\nend \"quoted\" &amp; more"}
{"id": "13", "revid": "103", "url": "https://en.wikipedia.org/wiki?curid=13", "title": "Tom &amp; \"Jerry\" &lt;x&gt; (disambiguation)", "text": "Short one here."}
{"id": "15", "revid": "105", "url": "https://en.wikipedia.org/wiki?curid=15", "title": "Empty", "text": ""}
"""  # noqa: E501

CHAD = (
  "Chad Chad is wide & 5 > 3, a <b> tag <doc> </doc>. History. It has "
  'one history and many. </doc> end "quoted" & more'
)


def read(tmp_path, data, name="AA/wiki_00"):
  path = tmp_path / "extracted" / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  source = f"wikipedia:{tmp_path}/extracted"
  return list(plain_reader.read_passages("text", source))


def read_article(tmp_path, **changes):
  """Return what becomes of an article of a single passage."""
  row = dict(id="1", title="T", text="word " * 9) | changes
  (found,) = read(tmp_path, json.dumps(row).encode(), "pages.jsonl")
  return found


@pytest.mark.parametrize(
  ("data", "name"),
  [
    (DOCS, "AA/wiki_00"),
    (LINES, "AA/wiki_00"),
    (bz2.compress(DOCS), "AA/wiki_00.bz2"),
    (LINES, "pages.jsonl"),
    # Without the time, which would give each worker of xdist another case.
    (gzip.compress(LINES, mtime=0), "pages.jsonl.gz"),
  ],
)
def test_output_of_wikiextractor_is_read(tmp_path, data, name):
  chad, jerry, empty = read(tmp_path, data, name)
  assert (chad.id, chad.kb, chad.text) == ("12", "text", CHAD)
  assert (jerry.reason, empty.reason) == ("a disambiguation", "no text")
  assert jerry.where.startswith(str(tmp_path)) and jerry.cure


def test_files_are_read_in_the_order_of_their_names(tmp_path):
  article = json.dumps(dict(id="%s", title="T", text="word " * 9)).encode()
  for number, name in enumerate(["AB/wiki_00", "AA/wiki_01", "AA/wiki_00"]):
    found = read(tmp_path, article % str(number).encode(), name)
  (tmp_path / "extracted/AA/notes.txt").write_text("not read")
  assert [passage.id for passage in found] == ["2", "1", "0"]


LEFT_OUT = {
  "a disambiguation": ["M (disambiguation)", "M (disambiguation page)"],
  "a list, index or outline": ["List of towns", "Index of x", "Outline of x"],
  "": ["Listing of towns", "A List of towns", "Disambiguation"],
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_articles_are_left_out_by_title(tmp_path, reason):
  for title in LEFT_OUT[reason]:
    found = read_article(tmp_path, title=title)
    assert getattr(found, "reason", "") == reason, title


def test_short_articles_are_left_out(tmp_path):
  few = "fewer than 8 words"
  for words, reason in ((0, "no text"), (1, few), (7, few), (8, "")):
    found = read_article(tmp_path, text="\n".join("w" * words))
    assert getattr(found, "reason", "") == reason, words


def windows_oracle(words):
  """Cut windows as the published script does, without its repeated last one."""
  if len(words) <= 100:
    return [words]
  found = [words[i : i + 100] for i in range(0, len(words) - 100 + 1, 50)]
  if len(words) % 100 and found[-1] != words[-100:]:
    found.append(words[-100:])
  return found


@pytest.mark.parametrize("count", [8, 99, 100, 101, 149, 150, 151, 200, 333])
def test_windows_are_headed_by_the_title(tmp_path, count):
  words = [f"w{i}>" for i in range(count)]  # The original cut at the first >.
  text = html.escape(" ".join(words), quote=False).replace(" w5", "\n\nw5")
  doc = f'<doc id="7" url="u" title="A b">\nA b\n\n{text}\n\n</doc>\n'
  found = read(tmp_path, doc.encode())
  wanted = windows_oracle(words)
  assert [p.text.split() for p in found] == [["A", "b", *w] for w in wanted]
  assert len({p.text for p in found}) == len(found)
  assert [p.id for p in found] == (
    ["7"] if len(wanted) == 1 else [f"7#{i}" for i in range(len(wanted))]
  )


def test_articles_with_markup_round_trip(tmp_path):
  rng = random.Random(0)
  pieces = [
    "<doc id=",
    *"""& < > &amp; </doc> " a é\u2028 &lt; { '""".split(" "),
  ]
  texts = [" ".join(rng.choices(pieces, k=40)) for _ in range(200)]
  docs = "".join(
    f'<doc id="{i}" url="u" title="{html.escape(text[:9], quote=False)}">\n'
    f"{html.escape(text, quote=False)}\n\n</doc>\n"
    for i, text in enumerate(texts)
  )
  found = read(tmp_path, docs.encode())
  wanted = [f"{text[:9]} {text}".split() for text in texts]
  assert [p.text.split() for p in found] == wanted


def test_rows_of_other_extractors_are_not_unescaped(tmp_path):
  found = read_article(tmp_path, id=3, text="a &amp;lt; b " * 4, url="u")
  assert found.text.startswith("T a &amp;lt; b") and found.id == "3"


DOC = b'<doc id="1" url="u" title="T">\nT\n\n' + b"word " * 9 + b"\n\n</doc>\n"

BAD = {
  "without its </doc>": DOC.replace(b"</doc>\n", b""),
  "outside of an article": b"some\ntext\n",
  "names no id": DOC.replace(b' title="T"', b""),
  "not UTF-8": DOC.replace(b"word", b"\xff", 1),
  '"title" is empty': DOC.replace(b'"T"', b'""'),
  "control character": DOC.replace(b"word", b"wo\x00rd", 1),
  "not an article": b'{"id": "a", "text": "b"}\n',
  "is no string": b'{"id": "a", "title": "b", "text": ["c"]}\n',
  '"id" is a bool': b'{"id": true, "title": "b", "text": "c"}\n',
  "not JSON": b'{"id": "a", "title": "b"\n',
}


@pytest.mark.parametrize("words", BAD)
def test_bad_article_is_rejected_and_the_next_is_read(tmp_path, words):
  bad, good = read(tmp_path, BAD[words] + DOC.replace(b'"1"', b'"2"'))
  assert isinstance(bad, RejectedRow) and words in bad.reason
  assert bad.where.endswith("wiki_00:1") and good.id == "2"


@pytest.mark.parametrize("end", [b"", b'">'])
def test_hostile_head_is_read_in_linear_time(end):
  head = b'<doc id="1"' + b' title="' * 100_000 + end
  start = time.process_time()
  with pytest.raises(RowError):
    wikipedia.to_passages("text", head + b"\nword " * 9, "")
  assert time.process_time() - start < 2  # CPU seconds.


def test_too_large_articles_are_rejected(tmp_path, monkeypatch):
  monkeypatch.setattr(wikipedia, "MAX_ARTICLE_BYTES", 100)
  many = DOC.replace(b"word " * 9, b"word word\n" * 30)
  one = DOC.replace(b"word ", b"w" * 60)
  docs = many + one + DOC.replace(b'"1"', b'"2"')
  first, second, good = read(tmp_path, docs)
  assert "over 100 bytes" in first.reason and "longer" in second.reason
  assert good.id == "2"


@pytest.mark.parametrize("name", ["dump.xml", "dump.xml.bz2"])
def test_dump_is_refused(tmp_path, name):
  (tmp_path / name).touch()
  with pytest.raises(ValueError, match="pip install wikiextractor"):
    plain_reader.read_passages("text", f"wikipedia:{tmp_path / name}")


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_damaged_file_is_an_error(tmp_path, kept):
  packed = bz2.compress(DOCS * 50)
  data = packed[: int(len(packed) * kept)] + b"x" * (not kept)
  with pytest.raises(ValueError, match="wiki_00.bz2: damaged"):
    read(tmp_path, data, "AA/wiki_00.bz2")
