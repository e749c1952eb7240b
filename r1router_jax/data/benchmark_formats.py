"""Forms in which benchmarks were published, as rows of this project's own form.

A published row is checked against a schema, whose `to_own` returns the row in
the form of `question_files`, with two keys more: "image_id", the stem of an
image's file, and "picture", the bytes of an image.  An accepted answer that is
a list is a list there.

  hotpotqa  hotpot_dev_fullwiki_v1.json: {"_id", "question", "answer", "type"}
  musique   musique_ans_v1.0_dev.jsonl: {"id", "question", "answer",
            "answer_aliases", "answerable"}
  e_vqa     test.csv: question, answer ("a|b" are two answers, "a&&b" is one
            that is a list), dataset_image_ids ("1|2", of which the first is
            asked about) and question_type
  fvqa      fvqa_test.parquet: prompt [{"content", "role"}], images [{"bytes",
            "path"}] and reward_model {"ground_truth", "candidate_answers"}
  mmsearch  end2end.parquet: sample_id, query, query_image {"bytes", "path"} or
            null, gt_answer, alternative_gt_answers and area
  livevqa   benchmark.json: {"id", "img_path", "level1_qa", "level2_qa"}, each
            of these {"question", "Ground_Truth_List", "img_path"}; its options
            are not shown, as in its own evaluation

`multimodalqa` has the form of MultimodalQA.

Sources, all on github.com: hotpotqa/hotpot, StonyBrookNLP/musique,
google-research/google-research (encyclopedic_vqa), CaraJ7/MMSearch,
EvolvingLMMs-Lab/multimodal-search-r1 (data_example.ipynb),
fumingyang2004/LIVEVQA (liveVQA_benchmarks).
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from r1router_jax.common import parquet_rows, row_files
from r1router_jax.common.row_files import RowError, Rows
from r1router_jax.data import multimodalqa

_Text = Annotated[str, Meta(pattern=r"\S")]
_LEVELS = ("level1", "level2")


class _Hotpot(msgspec.Struct, rename={"id": "_id"}):
  id: _Text
  question: _Text
  answer: _Text
  type: str | None = None

  def to_own(self) -> dict[str, Any]:
    return dict(
      id=self.id,
      question=self.question,
      answers=[self.answer],
      family=self.type,
    )


class _Musique(msgspec.Struct):
  id: _Text
  question: _Text
  answer: _Text
  answer_aliases: list[_Text] = []
  answerable: bool = True

  def __post_init__(self):
    if not self.answerable:
      raise ValueError("it is not answerable, as in musique_full")

  def to_own(self) -> dict[str, Any]:
    return dict(
      id=self.id,
      question=self.question,
      answers=[self.answer, *self.answer_aliases],
      # Ids begin with the shape of the question, such as 3hop1__.
      family=self.id.partition("__")[0],
    )


class _Evqa(msgspec.Struct):
  question: _Text
  answer: _Text
  dataset_image_ids: _Text
  question_type: Literal["templated", "automatic", "multi_answer", "2_hop"]

  def to_own(self) -> dict[str, Any]:
    answers = _split(self.answer, "|")
    if self.question_type == "multi_answer":
      answers = [_split(answer, "&&") for answer in answers]
    return dict(
      question=self.question,
      answers=answers,
      image_id=self.dataset_image_ids.split("|")[0].strip(),
      family=self.question_type,
    )


class _Picture(msgspec.Struct):
  bytes: bytes


class _Message(msgspec.Struct):
  content: _Text
  role: str


class _Reward(msgspec.Struct):
  ground_truth: _Text
  candidate_answers: list[str] | str | None = None


class _Fvqa(msgspec.Struct):
  prompt: Annotated[list[_Message], Meta(min_length=1)]
  images: Annotated[list[_Picture], Meta(max_length=1)]
  reward_model: _Reward
  data_id: _Text | int | None = None
  category: str | None = None

  def to_own(self) -> dict[str, Any]:
    others = self.reward_model.candidate_answers or []
    # A text holds them as JSON, in which numbers are no answers.
    if isinstance(others, str):
      others = row_files.parse_json(others.encode())
    if not isinstance(others, list):
      raise ValueError("candidate_answers hold no list")
    others = [x for x in others if isinstance(x, str) and x.strip()]
    answers = [self.reward_model.ground_truth, *others]
    return dict(
      id=self.data_id,
      question=self.prompt[-1].content,
      answers=list(dict.fromkeys(answers)),
      picture=self.images[0].bytes if self.images else b"",
      family=self.category,
    )


class _Mmsearch(msgspec.Struct):
  sample_id: _Text | int
  query: _Text
  gt_answer: _Text
  alternative_gt_answers: list[str] | None = None
  query_image: _Picture | None = None
  area: str | None = None

  def to_own(self) -> dict[str, Any]:
    others = [x for x in self.alternative_gt_answers or [] if x.strip()]
    return dict(
      id=self.sample_id,
      question=self.query,
      answers=[self.gt_answer, *others],
      picture=self.query_image.bytes if self.query_image else b"",
      family=self.area,
    )


class _LiveVqa(msgspec.Struct):
  """One question of an item, which `_read_livevqa` makes of its two."""

  id: _Text
  level: Literal[_LEVELS]
  question: _Text
  Ground_Truth_List: Annotated[list[_Text], Meta(min_length=1)]
  img_path: _Text

  def to_own(self) -> dict[str, Any]:
    return dict(
      id=f"{self.id}/{self.level}",
      question=self.question,
      answers=self.Ground_Truth_List,
      image=self.img_path,
      family=self.level,
    )


# The schema of each benchmark's rows.
SCHEMAS: dict[str, type[msgspec.Struct]] = {
  "multimodalqa": multimodalqa.Row,
  "e_vqa": _Evqa,
  "fvqa": _Fvqa,
  "mmsearch": _Mmsearch,
  "livevqa": _LiveVqa,
  "hotpotqa": _Hotpot,
  "musique": _Musique,
}


def to_own(name: str, row: Any) -> Any:
  """Return the row of benchmark `name` in this project's own form.

  A row of a benchmark that has no schema here stays as it is.

  Raises:
    RowError: if the row does not have the published form.
  """
  schema = SCHEMAS.get(name)
  if schema is None:
    return row
  try:
    own = msgspec.convert(row, schema).to_own()
  # Answers within a text may be no JSON.
  except ValueError as error:
    cure = "Take the row as it was published, of a file that has answers"
    raise RowError(f"it has a wrong form: {error}", cure) from None
  return {key: value for key, value in own.items() if value not in (None, b"")}


def read_rows(name: str, path: str) -> Rows:
  """Yield the published rows of a file of benchmark `name`.

  A file whose columns are not those of the benchmark, or that cannot be read to
  its end, raises UserError.
  """

  def check_columns(names: Sequence[str]) -> None:
    fields = msgspec.structs.fields(SCHEMAS[name])
    wanted = [field.encode_name for field in fields if field.required]
    if missing := [each for each in wanted if each not in names]:
      fault = f"it has no columns {', '.join(missing)}"
      raise RowError(fault, f"Name the file that {name} was published as")

  if reader := _READERS.get(name):
    return reader(path, check_columns)
  # JSON that Python wrote may have NaN where no field is read.
  return row_files.read_json_lines(path, parse_constant=float)


def _read_parquet(path: str, check_columns: row_files.CheckColumns) -> Rows:
  return parquet_rows.read_parquet_rows(path, check_columns, with_records=True)


def _read_csv(path: str, check_columns: row_files.CheckColumns) -> Rows:
  return row_files.read_csv_rows(path, check_columns=check_columns)


def _read_array(path: str, check_columns: row_files.CheckColumns) -> Rows:
  del check_columns  # Objects have no columns.
  return row_files.read_json_array(path)


def _read_livevqa(path: str, check_columns: row_files.CheckColumns) -> Rows:
  """Yield the one or two questions of each item."""
  for where, item in _read_array(path, check_columns):
    asked = []
    if isinstance(item, dict):
      asked = [level for level in _LEVELS if item.get(f"{level}_qa")]
    if isinstance(item, dict) and not asked:
      item = RowError("it has no level1_qa and no level2_qa", _ITEM_CURE)
    for level in asked:
      parts = item[f"{level}_qa"]
      shared = dict(id=item.get("id"), img_path=item.get("img_path"))
      is_dict = isinstance(parts, dict)
      yield where, shared | parts | dict(level=level) if is_dict else parts
    if not asked:
      yield where, item


_ITEM_CURE = "Take the row as it was published"

_READERS: dict[str, Callable[[str, row_files.CheckColumns], Rows]] = {
  "e_vqa": _read_csv,
  "fvqa": _read_parquet,
  "mmsearch": _read_parquet,
  "livevqa": _read_livevqa,
  "hotpotqa": _read_array,
}


def _split(text: str, mark: str) -> list[str]:
  """Return the parts of a text that are not blank."""
  return [part.strip() for part in text.split(mark) if part.strip()]
