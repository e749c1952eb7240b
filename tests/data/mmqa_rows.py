"""Rows in the form of MultimodalQA's files, with content of our own."""

GRAMMAR = "when did  {the [Title](s) in the [Roles] of [Ann] when the [Year] "
GRAMMAR += "was [1976]}, come out"


def answer(text, modality, *documents):
  """An answer of a question, or of one of those that it is made of."""
  held = [dict(doc_id=name, doc_part=modality) for name in documents]
  kinds = dict(text_instances=[], image_instances=[], table_indices=[])
  if modality != "table":
    kinds[f"{modality}_instances"] = held
  return dict(answer=text, type="string", modality=modality) | kinds


def question(kind, answers, between=(), grammar=None, **more):
  """A line of MMQA_dev.jsonl."""
  metadata = dict(type=kind, modalities=["table"], table_id="t1")
  metadata |= dict(image_doc_ids=["i1"], text_doc_ids=["x1"])
  metadata |= dict(intermediate_answers=list(between))
  if grammar:
    metadata["pseudo_language_question"] = grammar
  row = dict(qid="q1", question="When was it?", answers=list(answers))
  context = [dict(doc_id="t1", doc_part="table")]
  return row | dict(metadata=metadata, supporting_context=context) | more


COMPOSED = question(
  "Compose(TextQ,TableQ)",
  [answer("1976", "text", "x1")],
  [[answer("The Kite", "table")]],
  GRAMMAR,
)
LISTED = question(
  "ImageListQ",
  [answer("Rome", "image", "i1"), answer("Pisa", "image", "i2")],
  qid="q2",
)


def table_row(rows, name="Roles"):
  """A line of MMQA_tables.jsonl."""
  header = [
    dict(column_name=x, metadata=dict(parsed_values=[float("nan")]))
    for x in ("Year", "Title")
  ]
  cells = [[dict(text=text, links=[]) for text in row] for row in rows]
  table = dict(table_rows=cells, table_name=name, header=header)
  return dict(title="Ann", url="https://x", id="t1", table=table)
