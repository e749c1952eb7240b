"""PDF to rows of texts, one for each page, by the library of Chrome.

A page that is a picture, as a scan is, has no text: it is named, and so is a
file that has no other pages.
"""

import contextlib
import re

from etils import epy

from r1router_jax.common import row_files
from r1router_jax.common.row_files import RowError
from r1router_jax.retrieval.corpora import markdown

# Not every command reads PDF.
with epy.lazy_imports():
  import pypdfium2

MAX_PDF_BYTES = 256 << 20

# A word that goes on in the next line.
_HYPHEN = re.compile("[\x02\ufffe](\r?\n)?")
_SCAN_CURE = "Run OCR on it, as by: ocrmypdf FILE FILE"


def read_rows(
  path: str,
  name: str,
  title: str,
  open_file: row_files.OpenFile = row_files.open_local,
) -> row_files.Rows:
  """Yield the pages of an untrusted PDF as rows; a row's line is its page.

  Ids begin with the `name`; `title` is for a file that names none.  What cannot
  be read, and a page without text, is a `RowError`.
  """
  with open_file(path) as file:
    data = file.read(MAX_PDF_BYTES + 1)
  if len(data) > MAX_PDF_BYTES:
    raise RowError(f"larger than {MAX_PDF_BYTES:,} bytes", "Split it")
  try:
    pdf = pypdfium2.PdfDocument(data)
  except pypdfium2.PdfiumError as error:
    cure = "Save it again, without a password"
    raise RowError(f"no PDF that can be read ({error})", cure) from None
  with contextlib.closing(pdf):
    title = _clean_text(pdf.get_metadata_value("Title")) or title
    title = title[: markdown.MAX_HEADING]
    without_text = []
    for number in range(1, len(pdf) + 1):
      text = _read_page(pdf, number)
      if text == "":
        without_text.append(number)
      elif isinstance(text, RowError):
        yield f"{path}:{number}", text
      else:
        row_id = f"{name}#page-{number}"
        yield f"{path}:{number}", dict(id=row_id, title=title, text=text)
    if len(without_text) == len(pdf):
      raise RowError("a PDF without a text layer, as of a scan", _SCAN_CURE)
  for number in without_text:
    fault = "a page without a text layer, as of a scan"
    yield f"{path}:{number}", RowError(fault, _SCAN_CURE)


def _read_page(pdf: "pypdfium2.PdfDocument", number: int) -> str | RowError:
  """Return the text of a page, "" if it has none, or what is wrong."""
  try:
    with (
      contextlib.closing(pdf[number - 1]) as page,
      contextlib.closing(page.get_textpage()) as layer,
    ):
      if layer.count_chars() > row_files.MAX_ROW_BYTES:
        fault = f"a page of over {row_files.MAX_ROW_BYTES:,} characters"
        return RowError(fault, "Split it")
      return _clean_text(layer.get_text_bounded())
  except pypdfium2.PdfiumError as error:
    return RowError(f"a page that cannot be read ({error})", "Save it again")


def _clean_text(text: str) -> str:
  return markdown.clean_text(_HYPHEN.sub("", text))
