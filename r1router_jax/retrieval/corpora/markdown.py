"""Markdown to plain text: the sections, tables and images of a document.

A section is what stands between two headings, in the words that a reader would
see: links are their texts, images their alternative texts, code and HTML what
they say without fences and tags.  Pipe tables are kept apart.  The title of a
document is in its YAML front matter, or else is its first heading of level 1.

Sources: spec.commonmark.org; tables as in github.github.com/gfm.
"""

import dataclasses
import html
import itertools
import re
import urllib.parse

import markdown_it
from markdown_it.token import Token

from r1router_jax.common import row_files

# Characters of a title or a heading, which stand before each passage.
MAX_HEADING = 100

# A line of front matter: blank, indented, an item, a comment, or "key: value".
_YAML_LINE = re.compile(r"\s*$|[\s#-]|[\w .-]+:")
# Comments, scripts and styles with what they hold, and other tags.  One that is
# never closed reaches to the end, as in HTML, which also bounds the time.
_HTML = re.compile(
  r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1>|\Z)|<[^<>]*>",
  re.DOTALL | re.IGNORECASE,
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|[/#]", re.IGNORECASE)


@dataclasses.dataclass
class Section:
  """The text below a heading.

  Attributes:
    line: line of the document in which it begins, from 1.
    headings: the headings above it, outermost first, without the title.
    anchor: the name by which links refer to it, as on GitHub; "" for what
      stands above all headings but the title.
    blocks: its paragraphs, items and so on, a line each; there may be none.
  """

  line: int
  headings: tuple[str, ...] = ()
  anchor: str = ""
  blocks: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Table:
  """A table: the headings above it, and its rows with the lines they begin in.

  The first row is the header, and all have as many cells.
  """

  headings: tuple[str, ...]
  rows: list[list[str]] = dataclasses.field(default_factory=list)
  lines: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Document:
  """The parts of a document, in order.

  Attributes:
    title: its name, "" if it has none.
    sections: its sections.
    tables: its tables.
    images: (path from the document's folder, alternative text) of the images
      that are files.
  """

  title: str
  sections: list[Section]
  tables: list[Table] = dataclasses.field(default_factory=list)
  images: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def clean_text(text: str) -> str:
  """Return a text in one line, without control characters."""
  return " ".join(row_files.CONTROL.sub(" ", text).split())


def parse_document(text: str) -> Document:
  """Parse untrusted Markdown, in a time that is linear in its length."""
  title, body, first_line = _split_front_matter(text.replace("\r\n", "\n"))
  parts = _Parts(title, first_line)
  tokens = markdown_it.MarkdownIt("commonmark").enable("table").parse(body)
  # What opens a block is followed by its words.
  for token, following in itertools.pairwise([*tokens, None]):
    parts.add_token(token, following)
  return parts.document


def _split_front_matter(text: str) -> tuple[str, str, int]:
  """Return the title in front matter, the rest, and the line it begins in."""
  lines = text.split("\n")
  if lines[0].rstrip() != "---":
    return "", text, 1
  for number, line in enumerate(lines[1:], 1):
    if line.rstrip() in ("---", "..."):
      head = "\n".join(lines[1:number])
      title = re.search(r"^title:(.*)$", head, re.MULTILINE)
      title = clean_text(title[1]).strip("\"'") if title else ""
      rest = lines[number + 1 :]
      return title[:MAX_HEADING], "\n".join(rest), number + 2
    # The first line was a rule above a text.
    if not _YAML_LINE.match(line):
      break
  return "", text, 1


class DocumentBuilder:
  """A document that grows by its headings, blocks and tables, in order."""

  def __init__(self, title: str = "", first_line: int = 1):
    self.document = Document(title, [Section(first_line)])
    # The headings above, by level, and the last number of each anchor.
    self._headings, self._anchors = {}, {}

  def open_section(self, line: int, level: int, heading: str) -> None:
    """Open a section below a heading; the first of level 1 may be the title."""
    document, heading = self.document, heading[:MAX_HEADING]
    above = {k: v for k, v in self._headings.items() if k < level}
    is_title = level == 1 and heading and document.title in ("", heading)
    if is_title:
      document.title = heading
    elif heading:
      above[level] = heading
    self._headings = above
    # What stands above the title, such as a logo, belongs to what follows it.
    if is_title and len(document.sections) == 1:
      return
    section = Section(line, tuple(above.values()), self._make_anchor(heading))
    document.sections.append(section)

  def add_block(self, words: str) -> None:
    """Add a paragraph to the section, unless it is empty."""
    if words:
      self.document.sections[-1].blocks.append(words)

  def open_table(self) -> None:
    """Add a table without rows to the document."""
    self.document.tables.append(Table(tuple(self._headings.values())))

  def open_row(self, line: int) -> None:
    """Add a row without cells to the last table."""
    table = self.document.tables[-1]
    table.rows.append([])
    table.lines.append(line)

  def add_image(self, source: str, words: str) -> None:
    """Note an image, if its source is a file."""
    path = urllib.parse.unquote(source)
    if path and not _ADDRESS.match(path):
      self.document.images.append((path, clean_text(words)))

  def _make_anchor(self, heading: str) -> str:
    """Return a heading as in an address, numbered if it came before."""
    anchor = re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-")
    name = anchor = anchor or "section"
    # Another heading may say "a 1" already.
    count = self._anchors.get(anchor, 0)
    while name in self._anchors:
      count += 1
      name = f"{anchor}-{count}"
    self._anchors |= {anchor: count, name: self._anchors.get(name, 0)}
    return name


class _Parts(DocumentBuilder):
  """A document that grows by the tokens of its blocks."""

  def __init__(self, title: str, first_line: int):
    super().__init__(title, first_line)
    self._first_line = first_line

  def add_token(self, token: Token, following: Token | None) -> None:
    """Add what a token opens or holds."""
    tables, line = self.document.tables, self._first_line
    line += token.map[0] if token.map else 0
    match token.type:
      # A heading inside of a quotation or an item opens no section.
      case "heading_open" if token.level == 0:
        self.open_section(line, int(token.tag[1:]), self._words(following))
      case "heading_open" | "paragraph_open":
        self.add_block(self._words(following))
      case "fence" | "code_block":
        self.add_block(clean_text(token.content))
      case "html_block":
        self.add_block(_strip_tags(token.content))
      case "table_open":
        self.open_table()
      case "tr_open":
        self.open_row(line)
      case "th_open" | "td_open":
        tables[-1].rows[-1].append(self._words(following))

  def _words(self, token: Token) -> str:
    """Return the words of an inline token, and note its images."""
    words = []
    for child in token.children:
      match child.type:
        case "text" | "code_inline":
          words.append(child.content)
        case "image":
          words.append(child.content)
          self.add_image(child.attrs["src"], child.content)
        case "softbreak" | "hardbreak" | "html_inline":
          words.append(" ")
    return clean_text("".join(words))


def _strip_tags(source: str) -> str:
  return clean_text(html.unescape(_HTML.sub(" ", source)))
