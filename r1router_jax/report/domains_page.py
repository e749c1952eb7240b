"""One page of invented domains: passages, tables, pictures and questions.

Like the report of an evaluation it is self-contained and harmless, see html.py.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath

from r1router_jax.common.records import Passage, Question
from r1router_jax.protocol import tables
from r1router_jax.report import html


class ShownDomain(NamedTuple):
  """A domain as the page shows it: passages are by knowledge base."""

  title: str
  passages: Mapping[str, Sequence[Passage]]
  questions: Sequence[Question]


def write_page(
  path: str | epath.PathLike, title: str, domains: Sequence[ShownDomain]
) -> None:
  """Write the page; images that cannot be read are marked as missing.

  Args:
    path: file to write, in a folder that exists.
    title: heading of the page and title of the window.
    domains: what it shows, in this order.
  """
  template = html.ENVIRONMENT.get_template("domains.html.j2")
  parsed = {
    passage.id: tables.parse_table(passage.text)
    for domain in domains
    for passage in domain.passages["table"]
  }
  text = template.render(title=title, domains=domains, tables=parsed)
  epath.Path(path).write_text(text, encoding="utf-8")
