"""Folders of a user's own documents, tables and images.

One folder feeds all knowledge bases, each with the files that are for it:

  text    sections of Markdown (.md, .markdown) and HTML (.html, .htm), plain
          texts (.txt), and pages of PDF files
  table   .csv and .tsv files, and the tables of Markdown and HTML
  image   .png, .jpg, .jpeg and .webp files; the caption of NAME.png is the text
          of NAME.txt beside it, or else the alternative text that a Markdown or
          HTML file of the folder gives it, or else its name

A .csv file with the columns id and text is no table but the rows of a corpus,
see user_files.py: of the image knowledge base if it has the column image, else
of that of texts.  So are .parquet and .arrow files, see columnar.py, and with
them a data set that `datasets.save_to_disk` wrote.  Hidden files are left
alone, and so are links to folders; a link to a file outside of the folder is a
fault.
"""

import collections
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from absl import logging

from r1router_jax.common import row_files
from r1router_jax.common.files import is_below
from r1router_jax.common.row_files import RowError
from r1router_jax.common.text import sanitize_text
from r1router_jax.retrieval.corpora import columnar, documents

# Endings of images: those that are read, and those that are named as unread.
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_IMAGES = (".avif", ".bmp", ".gif", ".heic", ".jfif", ".tif", ".tiff")


def list_files(
  folder: str, on_error: Callable[[OSError], None] | None = None
) -> Iterator[str]:
  """Yield the files below a folder that are not hidden, in order of names.

  Of a subfolder that cannot be read, `on_error` gets the error.
  """
  for base, folders, files in os.walk(folder, onerror=on_error):
    # os.walk visits the subfolders in the order of this list.
    folders[:] = sorted(x for x in folders if not x.startswith("."))
    for file in sorted(files):
      if not file.startswith("."):
        yield os.path.join(base, file)


def warn_of_unread(folder: str) -> None:
  """Log how many files no knowledge base reads, by ending."""
  endings = collections.Counter()
  for path in list_files(folder):
    _, ending = os.path.splitext(path.lower())
    known = documents.DOCUMENT_PATTERN, documents.CSV_PATTERN
    known += (columnar.FILE_PATTERN,)
    # Images that are not read are named one by one.
    is_known = ending in IMAGES + OTHER_IMAGES
    is_known |= os.path.basename(path) in columnar.DESCRIPTIONS
    if not is_known and not any(re.fullmatch(each, path) for each in known):
      endings[ending or "without an ending"] += 1
  if endings:
    counts = ", ".join(f"{count} {x}" for x, count in endings.most_common())
    text = "%s: files that are not read: %s.  Save them as Markdown, plain "
    text += "text, CSV, PNG or JPEG; give files of rows by --source=FILE."
    logging.warning(text, folder, sanitize_text(counts))


def read_rows(kb: str, folder: str) -> row_files.Rows:
  """Yield the rows of a folder for a kind of knowledge base.

  A file or folder that cannot be used, or not to its end, is a `RowError`.
  """
  unread: list[OSError] = []
  paths, captions = list(list_files(folder, unread.append)), {}
  for error in unread:
    yield error.filename, _unreadable(error)
  endings = IMAGES + OTHER_IMAGES
  parts = map(os.path.splitext, paths)
  image_stems = {stem for stem, ending in parts if ending.lower() in endings}
  for path in paths:
    # The caption of an image is no document.
    stem, ending = os.path.splitext(path)
    if ending == ".txt" and stem in image_stems:
      continue
    try:
      yield from _read_file(kb, path, folder, captions)
    except RowError as fault:
      yield path, fault
    except row_files.BrokenFile as fault:
      where, *reason_and_cure = fault.args
      yield where, RowError(*reason_and_cure)
    except OSError as error:
      yield path, _unreadable(error)
  # An image may come before the document that shows it.
  if kb == "image":
    yield from _list_images(paths, folder, captions)


def _read_file(
  kb: str, path: str, folder: str, captions: dict[str, str]
) -> row_files.Rows:
  """Yield the rows of a file that is no image; add texts of its images.

  Raises a RowError or a `row_files.BrokenFile` if it cannot be used.
  """
  name = os.path.relpath(path, folder)
  if re.fullmatch(documents.DOCUMENT_PATTERN, path):
    # Only Markdown and HTML have tables and images.
    if kb == "text" or not name.lower().endswith((".txt", ".pdf")):
      _check_place(path, folder)
      if kb != "image":
        yield from documents.document_rows(kb, path, name)
        return
      # Of several texts the first counts, as far as there is one.
      for image, text in documents.read_document(path).images:
        place = os.path.normpath(os.path.join(os.path.dirname(name), image))
        captions[place] = captions.get(place) or text
  elif re.fullmatch(documents.CSV_PATTERN, path):
    _check_place(path, folder)
    columns = documents.corpus_columns(path)
    if columns and kb == ("image" if "image" in columns else "text"):
      yield from row_files.read_csv_rows(path)
    elif not columns and kb == "table":
      yield from documents.csv_table_rows(path, name)
  elif re.fullmatch(columnar.FILE_PATTERN, path):
    _check_place(path, folder)
    is_cache = re.fullmatch(columnar.CACHE_PATTERN, os.path.basename(path))
    if not is_cache and columnar.find_kb(path) == kb:
      yield from columnar.read_rows(path)


def _unreadable(error: OSError) -> RowError:
  fault = f"cannot be read ({error.strerror})"
  return RowError(fault, "Check its permissions")


def _check_place(path: str, folder: str) -> None:
  """Raise a RowError unless a path is that of a regular file of the folder."""
  if not is_below(path, folder):
    raise RowError("a link that leads out of the folder", "Copy the file there")
  # Reading a named pipe would wait for ever.
  if not os.path.isfile(path):
    raise RowError("no regular file", "Take it out of the folder")


def _list_images(
  paths: Iterable[str], folder: str, captions: Mapping[str, str]
) -> row_files.Rows:
  """Yield a row for each image of a folder, given the captions of some."""
  for path in paths:
    stem, ending = os.path.splitext(path)
    if ending.lower() in OTHER_IMAGES:
      yield path, RowError("not a PNG, JPEG or WEBP", "Convert it")
    elif ending.lower() in IMAGES:
      name, caption = os.path.relpath(path, folder), stem + ".txt"
      text = captions.get(name) or documents.name_to_title(name)
      try:
        if os.path.exists(caption):
          _check_place(caption, folder)
          (section,) = documents.read_document(caption).sections
          text = " ".join(section.blocks)
        yield path, dict(id=name, text=text, image=name)
      except RowError as fault:
        yield caption, fault
      except OSError as error:
        yield caption, _unreadable(error)
