"""The description of knowledge bases, also of those of older versions."""

import pytest

from r1router_jax.retrieval import kb_meta


def test_meta_keeps_the_old_names_of_embedders():
  for name in ("minilm", "image", "image_caption"):
    stored = name.replace("image", "picture")
    assert kb_meta.to_stored_embedder(name) == stored
    assert kb_meta.from_stored_embedder(stored) == name


def test_places_are_named_once_for_each_kind():
  assert kb_meta.kb_places("DIR", ["text"]) == {"text": "DIR/text"}
  places = kb_meta.kb_places("text=http://a:1, image=b", ["text", "image"])
  assert places == {"text": "http://a:1", "image": "b"}
  for kb_dir in ("text=a,text=b", "text=a", "text=a,image="):
    with pytest.raises(ValueError, match="place of each of text, image once"):
      kb_meta.kb_places(kb_dir, ["text", "image"])


def test_unfinished_and_damaged_folders_are_rejected(tmp_path):
  with pytest.raises(ValueError, match="build_kb --kb_dir="):
    kb_meta.check_kb_dir(str(tmp_path))
  (tmp_path / "text").mkdir()
  (tmp_path / "text/meta.json").write_text("{")
  with pytest.raises(ValueError, match="damaged.*build it again"):
    kb_meta.check_kb_dir(str(tmp_path))
