"""Question files in the forms of benchmarks' authors, with our own content."""

import csv
import io
import json

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from r1router_jax.data import benchmark_schema
from tests.data.shared_rows import write_rows


def picture(shade=0):
  file = io.BytesIO()
  Image.new("L", (30, 30), shade).save(file, "png")
  return file.getvalue()


HOTPOT = dict(_id="5a", question="Who?", answer="Ann", type="bridge")
HOTPOT |= dict(level="hard", supporting_facts=[["Ann", 0]])
HOTPOT |= dict(context=[["Ann", ["She sings."]]])
PART = dict(id=1, question="#1 >> x", answer="x", paragraph_support_idx=0)
MUSIQUE = dict(id="2hop__1_2", question="Who?", answer="Ann", answerable=True)
MUSIQUE |= dict(answer_aliases=["Anna"], paragraphs=[dict(idx=0, title="A")])
MUSIQUE |= dict(question_decomposition=[PART])
EVQA = dict(question="How tall?", answer="9 m|30 ft", dataset_name="landmarks")
EVQA |= dict(dataset_image_ids="ab12|cd34", question_type="automatic")
EVQA |= dict(evidence='It says "9", and more')
FVQA = dict(
  prompt=[dict(content="Who built it?", role="user")],
  images=[dict(bytes=picture(), path=None)],
  reward_model=dict(
    ground_truth="Ann", candidate_answers='["Anna", 7, "Ann"]', style="rule"
  ),
  data_source="mmsearch_r1/fvqa",
  image_urls=None,
)
MMSEARCH = dict(sample_id="s1", query="When is it?", gt_answer="May 1")
MMSEARCH |= dict(alternative_gt_answers=["1 May"], area="news", subfield="film")
MMSEARCH |= dict(query_image=dict(bytes=picture(9), path="a.png"))
LEVEL = dict(question="What is it?", Ground_Truth="B", options=["A. a", "B. b"])
LEVEL |= dict(Ground_Truth_List=["b", "the b"], img_path="1/x1.png")
LIVEVQA = dict(id="7", img_path="1/x1.png", source="AP", level1_qa=LEVEL)
LIVEVQA |= dict(level2_qa=dict(question="How many?", Ground_Truth_List=["3"]))


def write(folder, name, *rows):
  """Write rows in the form of a benchmark; return the path of the file."""
  path = folder / benchmark_schema.find_spec(name).file
  if path.suffix == ".parquet":
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
  elif path.suffix == ".json":
    path.write_text(json.dumps(rows))
  elif path.suffix == ".csv":
    with path.open("w", newline="") as file:
      table = csv.DictWriter(file, EVQA)
      table.writeheader()
      table.writerows(rows)
  else:
    write_rows(path, rows)
  return str(path)


# A good row of each benchmark.
ROWS = dict(hotpotqa=HOTPOT, musique=MUSIQUE, e_vqa=EVQA, fvqa=FVQA)
ROWS |= dict(mmsearch=MMSEARCH, livevqa=LIVEVQA)
