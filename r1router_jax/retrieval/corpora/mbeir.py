"""Reader of M-BEIR's candidate pools, for the image knowledge base.

A pool is a file `mbeir_*_cand_pool.jsonl`.  Each line is a candidate: "did"
(its id, "data set:number"), "modality" ("text", "image" or "image,text"),
"txt", "img_path" (below the folder that holds `mbeir_images`) and
"src_content", which is not read.  A passage keeps its text as it stands; the
embedders clean it.

Source: arxiv.org/abs/2311.17136 (UniIR).
"""

from r1router_jax.common import images, row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import RowError

# The fields that a candidate of each modality must have.
_FIELDS = {
  "text": ("txt",),
  "image": ("img_path",),
  "image,text": ("img_path", "txt"),
}

SUPPORTED_KBS = ("image",)
FILE_PATTERN = r"mbeir_.*cand_pool\.jsonl(\.gz|\.bz2)?"


def read_rows(
  kb: str, path: str, open_file: row_files.OpenFile = row_files.open_local
) -> row_files.Rows:
  """Yield the candidates of a pool, each as the bytes of its line."""
  del kb  # Candidates are images and what stands for them.
  return row_files.read_lines(path, open_file)


def to_passages(
  kb: str, row: bytes, image_folder: str
) -> tuple[str, list[Passage]]:
  """Return the id of a candidate and its one passage.

  Raises:
    RowError: the candidate is invalid.
    images.BadImage: its image is missing or invalid.
  """
  fields = row_files.parse_json(row)
  if not isinstance(fields, dict) or "did" not in fields:
    cure = 'Give objects with "did", "modality", "txt" and "img_path"'
    raise RowError("no candidate of M-BEIR", cure)
  modality = fields.get("modality")
  if modality not in _FIELDS:
    reason = f'"modality" is {str(modality)[:40]!a}'
    raise RowError(reason, f"Write one of {', '.join(_FIELDS)}")
  # Fields that the modality does not name are ignored, even if they are bad.
  found = {"txt": "", "img_path": ""}
  for name in _FIELDS[modality]:
    # Fields that do not apply are null in published pools.
    found[name] = row_files.validate_text(name, fields.get(name) or "")
    if not found[name].strip():
      reason = f'"{name}" is empty where the modality is {modality}'
      raise RowError(reason, "Give one")
  row_id = row_files.validate_text("did", fields["did"])
  if found["img_path"]:
    images.load_image(found["img_path"], image_folder)
  passage = Passage(row_id, kb, found["txt"].strip(), found["img_path"])
  return row_id, [passage]
