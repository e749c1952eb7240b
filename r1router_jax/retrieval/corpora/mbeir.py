"""M-BEIR's candidate pools: `mbeir_*_cand_pool.jsonl`, for the image kind.

A line is a candidate: "did" (its id, "data set:number"), "modality" ("text",
"image" or "image,text"), "txt", "img_path" (below the folder that holds
`mbeir_images`) and "src_content", which is not read.  A passage keeps its text
as it stands; embedders clean it (`picture_embedders.sentence`).

Source: arxiv.org/abs/2311.17136 (UniIR).
"""

from r1router_jax.common import images, row_files
from r1router_jax.common.records import Passage
from r1router_jax.common.row_files import Fault

_FIELDS = {
  "text": ("txt",),
  "image": ("img_path",),
  "image,text": ("img_path", "txt"),
}


rows = row_files.lines


def passages(kb: str, row: bytes, pictures: str) -> tuple[str, list[Passage]]:
  """The id of a candidate and its one passage.

  Raises:
    Fault: where the candidate is bad.
    images.BadImage: where its picture is, or is not there.
  """
  fields = row_files.parse(row)
  if not isinstance(fields, dict) or "did" not in fields:
    raise Fault(
      "no candidate of M-BEIR",
      'Give objects with "did", "modality", "txt" and "img_path"',
    )
  modality = fields.get("modality")
  if modality not in _FIELDS:
    raise Fault(
      f'"modality" is {str(modality)[:40]!a}',
      f"Write one of {', '.join(_FIELDS)}",
    )
  found = {"txt": "", "img_path": ""}
  for name in _FIELDS[modality]:
    found[name] = row_files.check(name, fields.get(name) or "")
    if not found[name].strip():
      raise Fault(
        f'"{name}" is empty where the modality is {modality}', "Give one"
      )
  name = row_files.check("did", fields["did"])
  if found["img_path"]:
    images.load(found["img_path"], pictures)
  return name, [Passage(name, kb, found["txt"].strip(), found["img_path"])]
