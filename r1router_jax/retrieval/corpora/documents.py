"""Documents and tables of one's own, to rows of knowledge bases.

A Markdown or HTML file gives a row of text for each section, headed by the
title and the headings above it, and rows of tables for its tables; a plain text
is one section, and a PDF has a row for each page.  A .csv or .tsv file is a
table: its first line is the header, unless it begins with "# " and is the
title.  Long tables become chunks of a few rows, each with title and header.
What has no title is called by its file's name.

Ids are like addresses: guide.md#opening-hours, guide.md/table-1, prices.csv,
report.pdf#page-2; "#0" and so on follow if a text has several windows or a
table several chunks.  If the text above all headings has windows guide.md#0 and
guide.md#1, a section headed "1" is guide.md#section-1.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Sequence

from r1router_jax.common import row_files
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import html_pages, markdown, pdf_pages

DOCUMENT_PATTERN = r"(?i).*\.(md|markdown|txt|html|htm|pdf)"
HTML_PATTERN, PDF_PATTERN = r"(?i).*\.html?", r"(?i).*\.pdf"
CSV_PATTERN = r"(?i).*\.(csv|tsv)(\.gz|\.bz2)?"

MAX_DOCUMENT_BYTES = 4 << 20

# Limits of a chunk of a table, of which a row may exceed the second by itself.
MAX_CHUNK_ROWS, MAX_CHUNK_WORDS = 12, 90
MAX_COLUMNS, MAX_CELL = 100, 300  # A cell is cut after so many characters.

# Marks that end a sentence, and quotes and brackets that may follow.
_END_OF_SENTENCE = re.compile(r"""[.!?:;,…]["'”’»)\]]*$""")


def read_document(
  path: str, open_file: row_files.OpenFile = row_files.open_local
) -> markdown.Document:
  """Read a Markdown file, a page of HTML, or a plain text, by its ending.

  A file that is too large, or no text in UTF-8, raises a RowError.
  """
  with open_file(path) as file:
    data = file.read(MAX_DOCUMENT_BYTES + 1)
  if len(data) > MAX_DOCUMENT_BYTES:
    raise RowError(f"larger than {MAX_DOCUMENT_BYTES:,} bytes", "Split it")
  if re.fullmatch(HTML_PATTERN, path):
    return html_pages.parse_page(data)
  # UTF-16 has these, too.
  if b"\0" in data:
    raise RowError("it holds zero bytes, as no text does", "Save it as UTF-8")
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    reason = f"not UTF-8 at byte {error.start}"
    raise RowError(reason, row_files.RECODE) from None
  if not path.lower().endswith(".txt"):
    return markdown.parse_document(text)
  paragraphs = map(markdown.clean_text, re.split(r"\n\s*\n", text))
  blocks = [paragraph for paragraph in paragraphs if paragraph]
  return markdown.Document("", [markdown.Section(1, blocks=blocks)])


def section_rows(
  document: markdown.Document, path: str, name: str
) -> row_files.Rows:
  """Yield the sections of a document as rows; ids begin with its `name`."""
  title = document.title or name_to_title(name)
  taken = set()  # The numbers of the windows above all headings.
  for section in document.sections:
    if section.blocks:
      row_id, text = name, _join_sentences(section.blocks)
      if not section.anchor:
        count = len(row_files.split_windows(text))
        taken = {str(i) for i in range(count) if count > 1}
      elif section.anchor in taken:
        row_id += f"#section-{section.anchor}"
      else:
        row_id += f"#{section.anchor}"
      head = _join_sentences([title, *section.headings])
      yield f"{path}:{section.line}", dict(id=row_id, title=head, text=text)


def table_rows(
  document: markdown.Document, path: str, name: str
) -> row_files.Rows:
  """Yield the tables of a document as rows, one for each chunk."""
  title = document.title or name_to_title(name)
  for number, table in enumerate(document.tables, 1):
    fields = dict(title=title, section_title=". ".join(table.headings))
    places = [f"{path}:{line}" for line in table.lines]
    rows = zip(places[1:], table.rows[1:], strict=True)
    table_id, header = f"{name}/table-{number}", table.rows[0]
    yield from split_table(table_id, places[0], fields, header, rows)


# What makes rows of a document, by kind of knowledge base.
ROW_READERS = dict(text=section_rows, table=table_rows)


def document_rows(
  kb: str,
  path: str,
  name: str,
  open_file: row_files.OpenFile = row_files.open_local,
) -> row_files.Rows:
  """Yield the rows of a document for texts or tables.

  What cannot be read is a `RowError`, or raises one.
  """
  if not re.fullmatch(PDF_PATTERN, path):
    document = read_document(path, open_file)
    yield from ROW_READERS[kb](document, path, name)
  elif kb == "text":
    title = name_to_title(name)
    yield from pdf_pages.read_rows(path, name, title, open_file)


def corpus_columns(
  path: str, open_file: row_files.OpenFile = row_files.open_local
) -> set[str]:
  """Return the columns of a .csv file of passages, none if it is a table."""
  try:
    with contextlib.closing(row_files.read_csv_table(path, open_file)) as rows:
      _, (title, columns) = next(rows)
  except row_files.BrokenFile:
    return set()  # Reading it as a table names the fault.
  return set(columns) if not title and {"id", "text"} <= {*columns} else set()


def csv_table_rows(
  path: str, name: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the table of a .csv file as rows, one for each chunk.

  Rows that cannot be used are `RowError`s between them.  Raises a
  `row_files.BrokenFile` if the file cannot be read, or not any further.
  """
  rows = row_files.read_csv_table(path, open_file)
  where, (title, header) = next(rows)
  # Each chunk repeats the title.
  title = markdown.clean_text(title)[: markdown.MAX_HEADING]
  fields = dict(title=title or name_to_title(name))
  yield from split_table(name, where, fields, header, rows)


def split_table(
  table_id: str,
  where: str,
  fields: dict[str, str],
  header: Sequence[str],
  rows: row_files.Rows,
) -> row_files.Rows:
  """Yield a table in chunks of rows, each with its header and other fields."""
  if len(header) > MAX_COLUMNS:
    fault = f"{len(header):,} columns, and a table may have {MAX_COLUMNS}"
    yield where, RowError(fault, "Split it")
    return
  # Each chunk repeats the header, too.
  fields |= dict(header=_clean_cells(header, markdown.MAX_HEADING))
  number, chunk, num_words = 0, [], 0
  for where_row, row in rows:
    # 1. A row that cannot be used costs itself alone.
    if isinstance(row, RowError):
      yield where_row, row
      continue
    # 2. Close the chunk if the row has no room in it.
    cells = _clean_cells(row)
    row_words = sum(max(1, len(cell.split())) for cell in cells)
    is_full = len(chunk) == MAX_CHUNK_ROWS
    if chunk and (is_full or num_words + row_words > MAX_CHUNK_WORDS):
      yield where, fields | dict(id=f"{table_id}#{number}", rows=chunk)
      number, chunk, num_words = number + 1, [], 0
    # 3. Add the row.
    if not chunk:
      where = where_row
    chunk.append(cells)
    num_words += row_words
  # Of a table in one piece the chunk has the name.
  if chunk:
    last_id = f"{table_id}#{number}" if number else table_id
    yield where, fields | dict(id=last_id, rows=chunk)


def _clean_cells(cells: Sequence[str], longest: int = MAX_CELL) -> list[str]:
  """Return cells in one line each, those of more characters cut."""
  cleaned = map(markdown.clean_text, cells)
  return [x if len(x) <= longest else f"{x[:longest]}…" for x in cleaned]


def name_to_title(path: str) -> str:
  """Return the name of a file as words, without its ending."""
  name = re.sub(r"(?i)\.(gz|bz2)$", "", os.path.basename(path))
  return re.sub(r"[-_]+", " ", os.path.splitext(name)[0])


def _join_sentences(texts: Iterable[str]) -> str:
  """Join texts, each with a mark at its end."""
  return " ".join(x if _END_OF_SENTENCE.search(x) else f"{x}." for x in texts)
