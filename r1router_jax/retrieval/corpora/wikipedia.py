"""Wikipedia: articles in plain text to windows of 100 words, as R1-Router's.

Read are the files of wikiextractor, `AA/wiki_00` and on, plain or .bz2:

  <doc id="12" url="..." title="Chad">
  Chad

  Chad is ...
  </doc>

or, with --json, a line {"id", "revid", "url", "title", "text"} for each; and
JSON lines {"id", "title", "text"} of any other extractor.  wikiextractor
escapes &, < and >, which is undone.

A dump itself, enwiki-*-pages-articles.xml.bz2, is wikiextractor's business:
only it expands templates.  A parser of wikitext that strips them loses every
converted quantity and date of birth, and keeps footnotes, captions and
categories.

Articles named as disambiguations or as lists, indexes and outlines, and those
of at most 7 words, are left out.  Of the others each window of 100 words, one
every 50 and the last, is headed by the title.  (The original meant to head them
so and wrote Python's builtin `id` there, for which its published passages have
the title in the first window alone.  It also cut articles at their first ">".)

Source: github.com/attardi/wikiextractor (3.1.0); arxiv.org/abs/2505.22095.
"""

import re

from r1router_jax.common import row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import Fault

MAX_ARTICLE = 8 << 20  # Bytes.

MIN_WORDS = 8

_HEAD = re.compile(rb'<doc id="([^"]*)"[^\n]* title="([^\n]*)">\s*$')

_LEFT_OUT = (
  (re.compile(r"\(disambiguation( page)?\)"), "a disambiguation"),
  (
    re.compile(r"^(List of|Index of|Outline of) .+"),
    "a list, index or outline",
  ),
)

_UNFINISHED = Fault("an article without its </doc>", "Extract it again")

_ESCAPES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&"))


def rows(
  path: str, open_file: row_files.Open = row_files.stored
) -> row_files.Rows:
  """The articles of a file, each as the bytes of its <doc> or JSON line."""
  first, article, size, fault = "", [], 0, None
  stray = False  # Of text outside of articles the first line is named.
  for where, line in row_files.lines(path, open_file, MAX_ARTICLE):
    bad = line if isinstance(line, Fault) else None
    if not bad and line.startswith(b"<doc "):
      if article:
        yield first, _UNFINISHED
      first, article, size, fault, stray = where, [line], 0, None, False
    elif article:
      fault = fault or bad
      if not bad and line.rstrip() == b"</doc>":
        yield first, fault or b"\n".join(article)
        article = []
      elif not fault:
        article.append(line)
        size += len(line)
        if size > MAX_ARTICLE:
          fault = Fault(f"an article of over {MAX_ARTICLE:,} bytes", "Split it")
    elif bad or line.lstrip().startswith(b"{"):
      yield where, line
    elif not stray:
      stray = True
      yield (
        where,
        Fault(
          "text outside of an article",
          "Give the files of "
          "wikiextractor, or JSON lines with id, title and text",
        ),
      )
  if article:
    yield first, _UNFINISHED


def passages(kb: str, row: bytes, pictures: str) -> tuple[str, list[Passage]]:
  """The id of an article and its windows.

  Raises:
    Fault: where it is bad, or left out.
  """
  del pictures  # It has none.
  name, title, text = _article(row) if row.startswith(b"<doc ") else _json(row)
  for pattern, reason in _LEFT_OUT:
    if pattern.search(title):
      raise _left_out(reason)
  first, _, rest = text.partition("\n")
  words = (rest if first.strip() == title else text).split()
  if len(words) < MIN_WORDS:
    raise _left_out(f"fewer than {MIN_WORDS} words" if words else "no text")
  parts = row_files.windows(" ".join(words))
  return name, [
    Passage(
      name if len(parts) == 1 else f"{name}#{number}",
      kb,
      row_files.check("text", f"{title} {part}"),
    )
    for number, part in enumerate(parts)
  ]


def _left_out(reason: str) -> Fault:
  return Fault(reason, "It is left out, as in the original")


def _article(row: bytes) -> tuple[str, str, str]:
  """Id, title and text of a <doc>."""
  head, _, text = row.partition(b"\n")
  match = _HEAD.match(head)
  if not match:
    raise Fault("its <doc> names no id or title", "Extract it again")
  try:
    name, title, text = (part.decode() for part in (*match.groups(), text))
  except UnicodeDecodeError:
    raise Fault("not UTF-8", "Extract it again") from None
  return _named(name, _unescape(title), _unescape(text))


def _json(row: bytes) -> tuple[str, str, str]:
  """Id, title and text of a JSON line."""
  fields = row_files.parse(row)
  if not (isinstance(fields, dict) and {"id", "title", "text"} <= set(fields)):
    raise Fault("not an article", 'Give objects with "id", "title", "text"')
  name, title, text = (fields[key] for key in ("id", "title", "text"))
  if not (isinstance(title, str) and isinstance(text, str)):
    raise Fault('"title" or "text" is no string', "Write strings")
  name = row_files.check("id", str(name) if type(name) is int else name)
  if "revid" in fields:  # wikiextractor's own.
    title, text = _unescape(title), _unescape(text)
  return _named(name, title, text)


def _named(name: str, title: str, text: str) -> tuple[str, str, str]:
  for key, value in (("id", name), ("title", title)):
    if not row_files.check(key, value).strip():
      raise Fault(f'"{key}" is empty', "Give one")
  return name, title.strip(), text


def _unescape(text: str) -> str:
  for escaped, character in _ESCAPES:
    text = text.replace(escaped, character)
  return text
