import json

import pytest
from PIL import Image

from r1router_jax.common.row_files import RejectedRow
from tests.retrieval.corpora import plain_reader


@pytest.fixture
def images(tmp_path):
  folder = tmp_path / "M-BEIR/mbeir_images/oven"
  folder.mkdir(parents=True)
  Image.new("RGB", (8, 8)).save(folder / "a.jpg")
  (folder / "broken.jpg").write_bytes(b"no image")
  return str(tmp_path / "M-BEIR")


def candidate(number, modality, txt=None, img=None, **more):
  path = img and f"mbeir_images/oven/{img}"
  row = dict(did=f"6:{number}", modality=modality, txt=txt, img_path=path)
  return row | dict(src_content='{"id": "x"}') | more


def read(tmp_path, images, *candidates):
  path = tmp_path / "mbeir_webqa_task1_cand_pool.jsonl"
  path.write_text("".join(json.dumps(c) + "\n" for c in candidates))
  return list(plain_reader.read_passages("image", f"mbeir:{path}", images))


def test_candidates_of_every_modality(tmp_path, images):
  found = read(
    tmp_path,
    images,
    candidate(1, "text", 'a "flag" '),
    candidate(2, "image", None, "a.jpg"),
    candidate(3, "image,text", "Chad", "a.jpg"),
    # An image that the modality does not name is not opened.
    candidate(4, "text", "b", "broken.jpg"),
  )
  assert [(p.id, p.kb, p.text, p.image) for p in found] == [
    ("6:1", "image", 'a "flag"', ""),
    ("6:2", "image", "", "mbeir_images/oven/a.jpg"),
    ("6:3", "image", "Chad", "mbeir_images/oven/a.jpg"),
    ("6:4", "image", "b", ""),
  ]


BAD = {
  "cannot be opened": candidate(1, "image", None, "absent.jpg"),
  "cannot identify": candidate(1, "image", None, "broken.jpg"),
  "leads out": candidate(1, "image", None, "../../../../x.jpg"),
  '"txt" is empty where the modality is text': candidate(1, "text"),
  '"img_path" is empty': candidate(1, "image,text", "a"),
  "\"modality\" is 'film'": candidate(1, "film", "a"),
  '"did" is a int': candidate(1, "text", "a", did=7),
  "no candidate": ["a"],
  "control character": candidate(1, "text", "a\x00b"),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_candidate_does_not_end_the_reading(tmp_path, images, words):
  bad, good = read(tmp_path, images, BAD[words], candidate(2, "text", "fine"))
  assert isinstance(bad, RejectedRow) and words in bad.reason and bad.cure
  assert bad.where.endswith("cand_pool.jsonl:1") and good.id == "6:2"


def test_missing_image_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match="needs --images"):
    read(tmp_path, "", candidate(1, "text", "a"))


def test_missing_images_are_counted_as_one_reason(tmp_path, images):
  rows = [candidate(i, "image", None, f"absent{i}.jpg") for i in range(5)]
  found = read(tmp_path, images, *rows)
  assert len({bad.kind for bad in found}) == 1
  assert len({bad.reason for bad in found}) == 5
