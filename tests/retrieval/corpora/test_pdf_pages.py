"""Pages of PDF files become texts."""

import pytest

from r1router_jax.retrieval.corpora import pdf_pages, sources
from tests.retrieval.corpora import plain_reader
from tests.tiny_pdf import make_pdf


def read(path, kb="text"):
  return plain_reader.split_passages(kb, str(path))


@pytest.mark.parametrize(
  "title, head", [("The guide", "The guide"), ("", "old hall")]
)
def test_each_page_is_a_text_headed_by_the_title(tmp_path, title, head):
  path = tmp_path / "old_hall.PDF"
  path.write_bytes(make_pdf(["It is old.\nVery old.", "Two doors."], title))
  good, bad = read(path)
  assert not bad
  assert [(p.id, p.text) for p in good] == [
    ("old_hall.PDF#page-1", f"{head} It is old. Very old."),
    ("old_hall.PDF#page-2", f"{head} Two doors."),
  ]
  assert sources.choose_kbs(str(path)) == ("text",)


def test_page_without_text_costs_itself_alone(tmp_path):
  (tmp_path / "a.pdf").write_bytes(make_pdf(["One.", "", "Three."]))
  (tmp_path / "b.md").write_text("good")
  good, (bad,) = read(tmp_path)
  assert [p.id for p in good] == ["a.pdf#page-1", "a.pdf#page-3", "b.md"]
  assert "a.pdf:2: a page without a text layer" in bad and "ocrmypdf" in bad


BAD = {
  "without a text layer": make_pdf(["", ""]),
  "no PDF that can be read": b"no PDF",
  "Save it again": make_pdf(["One."])[:200],
  "larger than 1,000,000 bytes": b"0" * 1_000_001,
}


@pytest.mark.parametrize("words", BAD)
def test_bad_file_is_named_and_its_neighbours_are_read(
  tmp_path, monkeypatch, words
):
  monkeypatch.setattr(pdf_pages, "MAX_PDF_BYTES", 1_000_000)
  path = tmp_path / "a.pdf"
  path.write_bytes(BAD[words])
  (tmp_path / "b.md").write_text("good\n\na|b\n-|-\n1|2\n")
  good, (bad,) = read(tmp_path)
  assert [p.id for p in good] == ["b.md"]
  assert bad.startswith(f"{path}: ") and words in bad and "\n" not in bad
  # It is nothing to tables.
  assert read(tmp_path, "table")[1] == []
  assert read(path)[1] == [bad]


def test_long_page_becomes_windows(tmp_path):
  words = [f"w{i}" for i in range(150)]
  lines = "\n".join(" ".join(words[i : i + 10]) for i in range(0, 150, 10))
  (tmp_path / "a.pdf").write_bytes(make_pdf([lines]))
  good, _ = read(tmp_path)
  assert [p.id for p in good] == ["a.pdf#page-1#0", "a.pdf#page-1#1"]
  assert good[1].text == " ".join(["a", *words[50:]])
