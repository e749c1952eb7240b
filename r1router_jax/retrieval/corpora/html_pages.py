"""HTML to plain text: the sections, tables and images of a page.

A page becomes a document as Markdown does, of what a reader sees in its main
part: scripts, styles, navigation, footers and what is hidden are dropped.  The
title is the first heading of level 1, or else that of the browser's window.  A
table with at least two rows and columns, and no table inside, is data; others
arrange the page, and their cells are paragraphs.

Source: html.spec.whatwg.org.
"""

import re

import webencodings
from etils import epy

from r1router_jax.common.row_files import RECODE, RowError
from r1router_jax.retrieval.corpora import markdown

# Not every command reads pages.
with epy.lazy_imports():
  from lxml import etree

# Limits of a table: of columns, one more than documents.py takes; of the
# characters of a cell, which it cuts shorter; of the rows that a cell spans.
_MAX_COLUMNS, _MAX_CELL, _MAX_SPAN = 101, 1000, 1000

# The encoding that a page names in its first bytes.
_CHARSET_BYTES = 1024
_CHARSET = re.compile(rb"<meta[^>]+?charset\s*=\s*[\"']?([\w.:-]+)", re.I)

# Elements that hold nothing to read, and those in lines of their own.
_DROPPED = frozenset(
  "audio button canvas dialog footer head iframe math nav noscript object "
  "script select style svg template textarea video".split()
)
_BLOCKS = frozenset(
  "address article aside blockquote body br caption center dd details div dl "
  "dt fieldset figcaption figure form h1 h2 h3 h4 h5 h6 header hr legend li "
  "main ol p pre section summary table tbody td tfoot th thead tr ul".split()
)
_HEADINGS = frozenset("h1 h2 h3 h4 h5 h6".split())


def parse_page(data: bytes) -> markdown.Document:
  """Parse an untrusted page of HTML, in a time that is linear in its length.

  A page without text, or in another encoding than it says, raises a RowError.
  """
  text = _decode(data)
  # The parser takes no tags that are nested deeper than 256.
  parser = etree.HTMLParser(
    encoding="utf-8", remove_comments=True, remove_pis=True
  )
  # An empty page is a syntax error.
  page = etree.fromstring(f"<html>{text}".encode(errors="replace"), parser)
  if any("depth" in error.message for error in parser.error_log):
    raise RowError("its tags are nested too deeply", "Save it as Markdown")
  reader = _PageReader()
  reader.read_page(page)
  document = reader.document
  if not document.tables and not any(x.blocks for x in document.sections):
    cure = "If scripts write it, save it from a browser; or leave it out"
    raise RowError("a page without text", cure)
  return document


def _decode(data: bytes) -> str:
  """Return the text of a page in the encoding that it names, or else UTF-8."""
  named = _CHARSET.search(data[:_CHARSET_BYTES])
  label = named[1].decode("ascii", "replace") if named else "utf-8"
  encoding = webencodings.lookup(label)
  if encoding is None:
    raise RowError(f"its encoding {label!a} is unknown", "Save it as UTF-8")
  # Its name could not be read if it were.
  if encoding.name.startswith("utf-16"):
    encoding = webencodings.UTF8
  try:
    # A byte order mark has the last word.
    text, _ = webencodings.decode(data, encoding, "strict")
  except UnicodeDecodeError as error:
    reason = f"not {error.encoding.upper()} at byte {error.start}"
    raise RowError(reason, RECODE) from None
  return text


class _PageReader(markdown.DocumentBuilder):
  """A document that grows by the elements of a page."""

  def read_page(self, page: "etree._Element") -> None:
    """Add the main part of a page."""
    main = page.find(".//main")
    body = page.find("body") if main is None else main
    words = []  # Of the paragraph that is being read.
    walk = etree.iterwalk(page if body is None else body, ("start", "end"))
    for event, element in walk:
      tag, is_start = element.tag, event == "start"
      if tag in _BLOCKS:
        self.add_block(markdown.clean_text("".join(words)))
        words = []
      if is_start and _is_dropped(element):
        walk.skip_subtree()
      elif is_start and tag in _HEADINGS:
        if heading := self._read_words(element):
          self.open_section(element.sourceline, int(tag[1]), heading)
        walk.skip_subtree()
      elif is_start and tag == "table" and _is_data(element):
        self._read_table(element)
        walk.skip_subtree()
      elif is_start:
        words.append(self._text_before(element))
      # What follows the main part is not of it.
      elif element is not body:
        words.append(element.tail or "")
    self.add_block(markdown.clean_text("".join(words)))
    title = markdown.clean_text(page.findtext("head/title") or "")
    document = self.document
    document.title = document.title or title[: markdown.MAX_HEADING]

  def _text_before(self, element: "etree._Element") -> str:
    """Return the text that an element begins with; note its image."""
    if element.tag != "img":
      return element.text or ""
    words = element.get("alt", "")
    self.add_image(element.get("src", "").strip(), words)
    return words

  def _read_words(self, whole: "etree._Element") -> str:
    """Return the words of a heading or a cell in one line."""
    words, walk = [], etree.iterwalk(whole, ("start", "end"))
    for event, element in walk:
      if element.tag in _BLOCKS:
        words.append(" ")
      if event == "start" and _is_dropped(element):
        walk.skip_subtree()
      elif event == "start":
        words.append(self._text_before(element))
      elif element is not whole:
        words.append(element.tail or "")
    return markdown.clean_text("".join(words))

  def _read_table(self, table: "etree._Element") -> None:
    """Add a table of data; a cell that spans several stands in each."""
    self.open_table()
    rows, above = self.document.tables[-1].rows, {}
    for row in table.iter("tr"):
      # 1. What spans from above; (rows that are left, words) by column.
      cells = {column: words for column, (_, words) in above.items()}
      above = {k: (left - 1, x) for k, (left, x) in above.items() if left > 1}
      # 2. The row's own cells, between the others.
      column = 0
      for cell in row.iterchildren("td", "th"):
        while column in cells:
          column += 1
        words = self._read_words(cell)[:_MAX_CELL]
        down, end = _span(cell, "rowspan"), column + _span(cell, "colspan")
        for each in range(column, min(end, _MAX_COLUMNS)):
          cells[each] = words
          if down > 1:
            above[each] = down - 1, words
      # 3. A row of the table, unless it has no cells.
      if cells:
        self.open_row(row.sourceline)
        rows[-1] += [cells.get(k, "") for k in range(max(cells) + 1)]
    # All rows have as many cells.
    width = max(map(len, rows))
    for row in rows:
      row += [""] * (width - len(row))


def _is_dropped(element: "etree._Element") -> bool:
  """Return whether a reader sees nothing of an element."""
  is_hidden = "hidden" in element.attrib
  is_hidden |= element.get("aria-hidden") == "true"
  is_menu = element.get("role") == "navigation"
  return element.tag in _DROPPED or is_hidden or is_menu


def _is_data(table: "etree._Element") -> bool:
  """Return whether a table is one of data, and does not arrange the page."""
  is_layout = table.get("role") in ("none", "presentation")
  if is_layout or next(table.iterdescendants("table"), None) is not None:
    return False
  widths = [
    sum(1 for _ in x.iterchildren("td", "th")) for x in table.iter("tr")
  ]
  return len(widths) > 1 and max(widths) > 1


def _span(cell: "etree._Element", name: str) -> int:
  """Return how many columns or rows a cell spans."""
  value = cell.get(name, "1").strip()
  is_number = re.fullmatch("[0-9]{1,4}", value)
  return min(max(int(value), 1), _MAX_SPAN) if is_number else 1
