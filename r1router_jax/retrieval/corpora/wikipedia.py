"""Reader of Wikipedia: articles in plain text, to windows of 100 words.

The files are those of wikiextractor, `AA/wiki_00` and on, plain or .bz2:

  <doc id="12" url="..." title="Chad">
  Chad

  Chad is ...
  </doc>

or, with its --json, a line {"id", "revid", "url", "title", "text"} for each
article; or JSON lines {"id", "title", "text"} of any other extractor.
wikiextractor escapes &, < and >, which is undone here.

A dump itself, enwiki-*-pages-articles.xml.bz2, is not read: only wikiextractor
expands templates.  A parser of wikitext that strips them loses every converted
quantity and date of birth, and keeps footnotes, captions and categories.

Left out are disambiguations, lists, indexes and outlines, by their titles, and
articles of at most 7 words.  Of all others each window of 100 words, one every
50 and the last, is headed by the title.  The original meant to do that but
wrote Python's builtin `id` there, so its published passages have the title in
the first window alone; it also cut articles at their first ">".

Source: github.com/attardi/wikiextractor (3.1.0); arxiv.org/abs/2505.22095.
"""

import re

from r1router_jax.common import row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import user_files

SUPPORTED_KBS = ("text",)
FILE_PATTERN = r"wiki_\d+(\.bz2)?|.*\.jsonl(\.gz|\.bz2)?"

MAX_ARTICLE_BYTES, MIN_WORDS = 8 << 20, 8

# That the end is right is looked at first, which bounds the time.
_HEAD = re.compile(rb'(?=.*">\s*$)<doc id="([^"]*)".* title="(.*)">\s*$')

# Titles of articles that are left out, and what these articles are.
_EXCLUDED_TITLES = {
  r"\(disambiguation( page)?\)": "a disambiguation",
  r"^(List of|Index of|Outline of) .+": "a list, index or outline",
}

# Reasons and cures of errors.
_UNFINISHED = ("an article without its </doc>", "Extract it again")
_STRAY_TEXT = (
  "text outside of an article",
  "Give the files of wikiextractor, or JSON lines with id, title and text",
)

# "&amp;" is the last, or else "&amp;lt;" would become "<".
_ESCAPES = (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&"))


def read_rows(
  kb: str, path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the articles of a file, each as the bytes of its <doc> or line."""
  del kb  # Articles are texts.
  start, article, size, error = "", [], 0, None  # The <doc> that is being read.
  in_stray_text = False  # Text outside of articles is named once, not by line.
  for where, line in row_files.read_lines(path, open_file, MAX_ARTICLE_BYTES):
    line_error = line if isinstance(line, RowError) else None
    # A new article begins, whether or not the last one was finished.
    if not line_error and line.startswith(b"<doc "):
      if article:
        yield start, RowError(*_UNFINISHED)
      start, article, size, error = where, [line], 0, None
      in_stray_text = False
    # A line of the article, or its end.
    elif article:
      error = error or line_error
      if not line_error and line.rstrip() == b"</doc>":
        yield start, error or b"\n".join(article)
        article = []
      elif not error:
        article.append(line)
        size += len(line)
        if size > MAX_ARTICLE_BYTES:
          reason = f"an article of over {MAX_ARTICLE_BYTES:,} bytes"
          error = RowError(reason, "Split it")
    # A line by itself: JSON, or something else.
    elif line_error or line.lstrip().startswith(b"{"):
      yield where, line
    elif not in_stray_text:
      in_stray_text = True
      yield where, RowError(*_STRAY_TEXT)
  if article:
    yield start, RowError(*_UNFINISHED)


def to_passages(
  kb: str, row: bytes, image_folder: str
) -> tuple[str, list[Passage]]:
  """Return the id of an article and its windows.

  Raises a RowError if the article is invalid or left out.
  """
  del image_folder  # Articles have no images.
  parse = _parse_doc if row.startswith(b"<doc ") else _parse_json_article
  article_id, title, text = parse(row)
  for pattern, reason in _EXCLUDED_TITLES.items():
    if re.search(pattern, title):
      raise _excluded_article(reason)

  # wikiextractor repeats the title as the first line of a <doc>.
  first, _, rest = text.partition("\n")
  words = (rest if first.strip() == title else text).split()
  if len(words) < MIN_WORDS:
    reason = f"fewer than {MIN_WORDS} words" if words else "no text"
    raise _excluded_article(reason)
  # A short text is returned as it stands, so its white space is cleaned first.
  windows = row_files.split_windows(" ".join(words))
  texts = [row_files.validate_text("text", f"{title} {x}") for x in windows]
  return article_id, user_files.number_windows(article_id, kb, texts)


def _excluded_article(reason: str) -> RowError:
  """Return the error of an article that the original leaves out, too."""
  return RowError(reason, "It is left out, as in the original")


def _parse_doc(row: bytes) -> tuple[str, str, str]:
  """Return the id, title and text of a <doc>."""
  head, _, text = row.partition(b"\n")
  # The title may hold quotation marks, so it runs to the last one.
  match = _HEAD.match(head)
  if not match:
    raise RowError("its <doc> names no id or title", "Extract it again")
  try:
    article_id, title, text = (x.decode() for x in (*match.groups(), text))
  except UnicodeDecodeError:
    raise RowError("not UTF-8", "Extract it again") from None
  return _validate_article(article_id, _unescape(title), _unescape(text))


def _parse_json_article(row: bytes) -> tuple[str, str, str]:
  """Return the id, title and text of a JSON line."""
  fields = row_files.parse_json(row)
  if not (isinstance(fields, dict) and {"id", "title", "text"} <= set(fields)):
    raise RowError("not an article", 'Give objects with "id", "title", "text"')
  article_id, title, text = (fields[key] for key in ("id", "title", "text"))
  if not (isinstance(title, str) and isinstance(text, str)):
    raise RowError('"title" or "text" is no string', "Write strings")
  if type(article_id) is int:  # Not isinstance: True and False are ints, too.
    article_id = str(article_id)
  row_files.validate_text("id", article_id)
  if "revid" in fields:  # Only wikiextractor writes it, and only it escapes.
    title, text = _unescape(title), _unescape(text)
  return _validate_article(article_id, title, text)


def _validate_article(name: str, title: str, text: str) -> tuple[str, str, str]:
  """Return an article, its title stripped, if id and title are not empty."""
  for key, value in (("id", name), ("title", title)):
    if not row_files.validate_text(key, value).strip():
      raise RowError(f'"{key}" is empty', "Give one")
  return name, title.strip(), text


def _unescape(text: str) -> str:
  for escaped, character in _ESCAPES:
    text = text.replace(escaped, character)
  return text
