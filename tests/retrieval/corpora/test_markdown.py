"""What a reader would see of a Markdown document."""

import time

import pytest

from r1router_jax.retrieval.corpora import markdown

GUIDE = """\
---
layout: page
title: "Museum guide"
tags:
  - old
---
![Crest of Ardin](pictures/the%20crest.png)

Museum guide
============

The *museum* of [Ardin][1] was `founded` in
1874&nbsp;AD <b>by</b> a <br>miller. <!-- by whom? -->

- Tea room
- Shop, with
  > books

  # Quoted

Opening hours
-------------

```bash
open --door
```

| Day | Opens |
|-----|------:|
| *Monday* | 9 |
| Sun\\|day |
| Friday | 8 | never |

### For groups

<div class="x">Ask <i>first</i> &amp; pay</div>
<style>b { color: red }</style>

    four spaces

## Opening hours
#

[1]: http://example.org "Ardin"
"""


def test_guide_is_read_as_a_reader_sees_it():
  document = markdown.parse_document(GUIDE)
  assert document.title == "Museum guide"
  assert document.images == [("pictures/the crest.png", "Crest of Ardin")]
  assert [(s.line, s.headings, s.anchor) for s in document.sections] == [
    (7, (), ""),
    (21, ("Opening hours",), "opening-hours"),
    (34, ("Opening hours", "For groups"), "for-groups"),
    (41, ("Opening hours",), "opening-hours-1"),
    (42, (), "section"),
  ]
  assert [section.blocks for section in document.sections] == [
    [
      "Crest of Ardin",
      "The museum of Ardin was founded in 1874 AD by a miller.",
      *("Tea room", "Shop, with", "books", "Quoted"),
    ],
    ["open --door"],
    ["Ask first & pay", "four spaces"],
    [],
    [],
  ]
  (table,) = document.tables
  assert (table.lines[0], table.headings) == (28, ("Opening hours",))
  # Rows are filled up and cut to the header, as GitHub shows them.
  rows = [["Day", "Opens"], ["Monday", "9"], ["Sun|day", ""], ["Friday", "8"]]
  assert table.rows == rows


@pytest.mark.parametrize(
  ("text", "title", "headings"),
  [
    ("# A\n## B\n# C\n### D\n", "A", [(), ("B",), ("C",), ("C", "D")]),
    ("## B\n# A\n## C\n", "A", [(), ("B",), (), ("C",)]),
    ("---\ntitle: A\n---\n# B\n# A\n", "A", [(), ("B",), ()]),
    ("---\ntitle: A\n\n# B\n", "B", [()]),  # Front matter that never ends.
    ("---\nA text.\n\n---\n", "", [()]),  # Two rules.
    ("no title\n", "", [()]),
    ("", "", [()]),
  ],
)
def test_title_is_that_of_front_matter_or_the_first_heading(
  text, title, headings
):
  document = markdown.parse_document(text)
  assert document.title == title
  assert [section.headings for section in document.sections] == headings


def test_anchors_are_those_of_github():
  text = "## A b?\n## a B\n## a-b 1\n## a b\n## Über die Nr. 5\n## ?!\n"
  _, *sections = markdown.parse_document(text).sections
  # As github-slugger numbers them.
  anchors = "a-b a-b-1 a-b-1-1 a-b-2 über-die-nr-5 section"
  assert [section.anchor for section in sections] == anchors.split()


def test_only_files_are_images():
  names = "a.png ../b.png /c.png http://d/e.png data:f #g".split()
  text = "".join(f"![x]({name})\n" for name in names)
  images = markdown.parse_document(text).images
  assert [path for path, _ in images] == ["a.png", "../b.png"]


HOSTILE = {
  "brackets": "[" * 50_000,
  "images": "![" * 25_000,
  "emphasis": "*a **b " * 7_000,
  "quotes": ">" * 50_000,
  "items": "".join(f"{'  ' * i}* a\n" for i in range(200)),
  "ticks": "".join("e" + "`" * i for i in range(300)),
  "comments": "<!--" * 12_000,
  "tags": "<a " * 16_000,
  "styles": "<style " * 7_000,
  "headings": "## a\n" * 10_000,
  "pipes": "|" * 25_000 + "\n" + "|-" * 25_000 + "\n",
  "empty cells": "|a" * 500 + "\n" + "|-" * 500 + "\n" + "|\n" * 25_000,
  "front matter": "---\n" + "-a: b\n" * 10_000,
  "controls": "a\x00\x1b[31m\x7f" * 9_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_document_is_read_in_time(name):
  start = time.process_time()
  document = markdown.parse_document(HOSTILE[name])
  # The slowest takes a second, and a quadratic parser would take minutes.
  assert time.process_time() - start < 10
  for section in document.sections:
    assert not any("\x1b" in block for block in section.blocks)
