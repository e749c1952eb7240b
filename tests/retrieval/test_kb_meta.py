"""The description of knowledge bases, also of those of older versions."""

import pytest

from r1router_jax.retrieval import kb_meta


def test_meta_keeps_the_old_names_of_embedders():
  for name in ("minilm", "image", "image_caption"):
    stored = name.replace("image", "picture")
    assert kb_meta.to_stored_embedder(name) == stored
    assert kb_meta.from_stored_embedder(stored) == name


def test_places_of_a_folder_are_those_that_are_there(tmp_path):
  for kind in ("text", "image", "table"):
    (tmp_path / kind).mkdir()
  (tmp_path / "text/meta.json").touch()
  (tmp_path / "table/passages.jsonl").touch()
  # A build that found nothing to read leaves its lock.
  (tmp_path / "image/.lock").touch()
  found = {kind: str(tmp_path / kind) for kind in ("text", "table")}
  assert kb_meta.kb_places(str(tmp_path)) == found
  for kb_dir, kinds in ((tmp_path, ["image"]), (tmp_path / "x", ["text"])):
    with pytest.raises(ValueError, match="no finished knowledge base"):
      kb_meta.kb_places(str(kb_dir), kinds)


def test_places_are_named_once_for_each_kind():
  places = kb_meta.kb_places("text=http://a:1, image=b", ["text", "image"])
  assert places == {"text": "http://a:1", "image": "b"}
  assert kb_meta.kb_places("table=b") == {"table": "b"}
  for kb_dir in ("text=a,text=b", "table=a", "text=a,image=", "text=a,b"):
    with pytest.raises(ValueError, match="some of text, image, each once, as"):
      kb_meta.kb_places(kb_dir, ["text", "image"])


def test_unfinished_and_damaged_folders_are_rejected(tmp_path):
  with pytest.raises(ValueError, match="build_kb --kb_dir="):
    kb_meta.check_kb_dir(str(tmp_path))
  # A build that was interrupted.
  (tmp_path / "text").mkdir()
  (tmp_path / "text/passages.jsonl").touch()
  with pytest.raises(ValueError, match="text holds no finished.*build_kb"):
    kb_meta.check_kb_dir(str(tmp_path))
  (tmp_path / "text/meta.json").write_text("{")
  with pytest.raises(ValueError, match="meta.json: not JSON.*Build it again"):
    kb_meta.check_kb_dir(str(tmp_path))
