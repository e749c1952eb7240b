"""Pages of HTML become texts, tables and captions as a reader sees them."""

import time

import pytest
from PIL import Image

from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import html_pages, sources
from tests.retrieval.corpora import plain_reader

GUIDE = """<!DOCTYPE html>
<html><head><title>Guide - The museum</title><meta charset="utf-8">
<style>p { color: red }</style></head><body>
<nav><a href="/">Home</a> | About</nav><header>Museum</header>
<div role="navigation">Menu</div><div hidden>secret</div>
<h1 hidden>No</h1><h1>The <em>Guide</em></h1>
<p>The hall&nbsp;is <b>ol</b>d.<script>var x = "no";</script>
<div>Loose <span>words</span><p>Caf\u00e9</p>more</div>
<h2>Tea<br>room</h2><ul><li>one<li>two</ul>
<table><caption>Prices</caption><tr><th>Cup<th>Price
<tr><td>small<td>2 &lt; 3<tr><td>large<td><p>4</p><p>or 5</p></table>
<h3>Kites</h3><img src="kite%201.png" alt="A kite"><img src="data:x" alt="">
<footer>(c) nobody</footer><!-- hidden --></body></html>
"""


def read(kb, path):
  return list(plain_reader.read_passages(kb, str(path)))


def test_guide_is_read_as_a_reader_sees_it(tmp_path):
  (tmp_path / "guide.html").write_text(GUIDE)
  texts = {p.id: p.text for p in read("text", tmp_path)}
  assert texts == {
    "guide.html": "The Guide. Museum. The hall is old. Loose words. Caf\u00e9. "
    "more.",
    "guide.html#tea-room": "The Guide. Tea room. one. two.",
    "guide.html#kites": "The Guide. Tea room. Kites. A kite.",
  }
  (table,) = read("table", tmp_path)
  assert table.id == "guide.html/table-1"
  assert table.text == (
    "[Title]The Guide[Section title]Tea room[Caption][Table name]"
    "[Header]Cup[sep]Price[Rows][Row]small[sep]2 < 3[Row]large[sep]4 or 5"
  )
  # An image is captioned by a page as it is by Markdown.
  Image.new("RGB", (8, 8)).save(tmp_path / "kite 1.png")
  (image,) = read("image", tmp_path)
  assert (image.id, image.text) == ("kite 1.png", "A kite")
  assert sources.choose_kbs(str(tmp_path / "guide.html")) == ("text", "table")


def test_rows_are_named_by_their_lines(tmp_path):
  path = tmp_path / "guide.htm"
  path.write_text(GUIDE)
  source = sources.open_source("text", str(path))
  found = [where for where, _ in sources.read_raw_rows(source)]
  assert found == [f"{path}:{line}" for line in (1, 9, 12)]
  source = sources.open_source("table", str(path))
  assert [x for x, _ in sources.read_raw_rows(source)] == [f"{path}:11"]


def parse(body, head=""):
  page = f"<html><head>{head}</head><body>{body}</body></html>"
  return html_pages.parse_page(page.encode())


def blocks(document):
  return [block for section in document.sections for block in section.blocks]


def test_main_part_is_all_of_a_page():
  document = parse("<div>Menu</div><main><p>Text</p></main>after", "")
  assert blocks(document) == ["Text"]


@pytest.mark.parametrize(
  "body, title",
  [("<h1>One</h1>a", "One"), ("a", "Window"), ("<h2>Two</h2>a", "Window")],
)
def test_title_is_the_first_heading_or_that_of_the_window(body, title):
  assert parse(body, "<title> Window </title>").title == title


def test_cells_that_span_stand_in_each_row_and_column():
  (table,) = parse(
    "<table><tr><th>a<th colspan=2>b<tr><td rowspan=2>1<td>2<td>3"
    "<tr><td rowspan=9>4<tr><td>5<td colspan=x>6</table>"
  ).tables
  assert table.rows == [
    ["a", "b", "b"],
    ["1", "2", "3"],
    ["1", "4", ""],
    ["5", "4", "6"],
  ]


@pytest.mark.parametrize(
  "table, texts",
  [
    ("<table><tr><td>left<td>right</table>", ["left", "right"]),
    ("<table><tr><td>one<tr><td>two</table>", ["one", "two"]),
    (
      "<table role=presentation><tr><td>a<td>b<tr><td>c<td>d</table>",
      ["a", "b", "c", "d"],
    ),
    (
      "<table><tr><td>a<td><table><tr><td>1<td>2<tr><td>3<td>4</table>"
      "<tr><td>b<td>c</table>",
      ["a", "b", "c"],
    ),
  ],
)
def test_tables_that_arrange_a_page_are_paragraphs(table, texts):
  document = parse(table)
  assert blocks(document) == texts
  assert len(document.tables) == ("1" in table)


@pytest.mark.parametrize(
  "data",
  [
    "<p>Caf\u00e9".encode(),
    "<p>Caf\u00e9".encode("utf-8-sig"),
    "<p>Caf\u00e9".encode("utf-16"),
    "<meta charset=windows-1252><p>Caf\u00e9".encode("cp1252"),
    "<META http-equiv=x content='text/html; charset=ISO-8859-1'>"
    "<p>Caf\u00e9".encode("latin-1"),
    # It could not be read if it were so.
    "<meta charset=utf-16><p>Caf\u00e9".encode(),
  ],
)
def test_encoding_is_the_one_that_is_named(data):
  assert blocks(html_pages.parse_page(data)) == ["Caf\u00e9"]


BAD = {
  "not UTF-8 at byte 6": "<p>Caf\u00e9".encode("cp1252"),
  "'punycode' is unknown": b"<meta charset=punycode>a",
  "a page without text": b"<html><script>write('a')</script><nav>b</nav>",
  "without text": b"",
  "nested too deeply": b"<div>" * 300 + b"a",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_page_is_named_and_its_neighbours_are_read(tmp_path, words):
  (tmp_path / "a.html").write_bytes(BAD[words])
  (tmp_path / "b.html").write_text("<p>good")
  good, (bad,) = plain_reader.split_passages("text", str(tmp_path))
  assert [p.id for p in good] == ["b.html"]
  assert bad.startswith(f"{tmp_path}/a.html: ") and words in bad


HOSTILE = {
  "deep": "<b><p>" * 100_000,
  "open": "<" * 600_000,
  "comments": "<!--" * 200_000,
  "sections": "<![CDATA[" * 100_000,
  "attributes": "<a " + "x=1 " * 200_000,
  "entities": "&#x" * 200_000,
  "cells": "<table><tr>" + "<td>a" * 100_000,
  "spans": "<table>" + "<tr><td rowspan=999 colspan=999>a<td>" * 10_000,
  "long": "<table><tr><td rowspan=999>" + "a" * 600_000 + "<tr><td>b<td>" * 999,
  "nested": "<table><tr><td>" * 60_000,
  "headings": "<h1>a" * 50_000,
  "charset": "<meta " * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_page_is_read_in_time(name):
  start = time.process_time()
  try:
    html_pages.parse_page(HOSTILE[name].encode())
  except RowError as fault:
    assert "nested" in str(fault) or "without text" in str(fault)
  # The slowest takes three seconds, and a quadratic one would take minutes.
  assert time.process_time() - start < 10
