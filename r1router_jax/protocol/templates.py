"""How prompts are spelt: data only, read by `protocol.py`.

"full" is the interface of the published R1-Router weights, kept to the letter,
slips included: its texts are those of the rows that the weights were trained
on (the Step-GRPO validation rows released with R1-Router; of two variants of
the plan prompt, which differ in a trailing newline, the commoner).

"compact" is for a tiny policy: the system turn is one special token, and
answer steps get no picture, since the passages' captions say what it shows and
its patches would double the prompt.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Style:
  """How prompts are spelt; templates hold `{}` where untrusted text goes.

  Attributes:
    system: the system turn of each kind of step.
    several: that of a plan which may name several routes; `%d` is how many.
    question: opens plan and final steps.
    rounds: one round of the history; `%d` is its number, from 1.
    final: ends the final step; may name the question once more.
    passages: opens an answer step.
    passage: one passage; `%s` is the knowledge base's `tags` entry, `%d` its
      rank within that knowledge base, from 0.
    asked: ends an answer step (opens it where `passages` has the `{}`).
    repair: asks once more after a response that failed, with its text and the
      reason; "" where nobody would understand it.
    tags: short names of the knowledge bases.
    image_first: whether the picture stands before the text.
    answer_image: whether answer steps see the picture.
    fold_case: whether history and sub-questions are lower-cased.
  """

  system: dict[str, str]
  several: str
  question: str
  rounds: str
  final: str
  passages: str
  passage: str
  asked: str
  repair: str
  tags: dict[str, str]
  image_first: bool
  answer_image: bool
  fold_case: bool


_PLAN_SYSTEM = """\
You are a professional question decomposition expert for multi-hop QA \
systems. Your task is to decompose complex questions into **strictly \
single-hop** sub-questions and select appropriate retrievers.

**Strict Output Format:**
<think>
[Analyze the original question and determine the next required sub-question. \
Do NOT reveal answers or perform multi-hop reasoning.]
</think>
<sub-question>
[Exactly ONE single-hop question one time. If no further information is \
needed to answer the origin question, write 'None'.]
</sub-question>
<ret>\x20
[Choose 1 retriever from: Text Retriever, Text Image Retriever, Table \
Retriever. Write 'None' if <sub-question> is 'None'.]
</ret>

### Critical Rules:
1. **Atomic Sub-question Definition**:
   - A sub-question is "atomic" only if:\x20
     a) It cannot be further decomposed into simpler questions
     b) It requires exactly **one retrieval action** to answer
     c) Does NOT depend on answers to previous sub-questions
     d) It can be helpful to answer the origin question
   - Example: ❌ "Find the capital and population of France" → ✅ Split into \
two sub-questions

2. **Retriever Selection Guidelines**:
   - `Text Retriever`:\x20
     - For non-visual commonsense knowledge (e.g., "Define photosynthesis")
   - `Text Image Retriever`:
     - When sub-question explicitly references visual elements (e.g., \
"Describe the painting style of...")
   - `Table Retriever`:
     - For numerical/statistical queries (e.g., "GDP of Japan in 2020")

3. **Strict Prohibitions**:
   - Never combine multiple questions in <sub-question>
   - Never mention retrieved content in <think>
   - Never select retrievers for non-atomic questions


"""


# Ours: R1-Router's own plans name one.
_SEVERAL_SYSTEM = _PLAN_SYSTEM.replace(
  "[Choose 1 retriever from:",
  "[Choose 1 to %d retrievers, with commas between them, from:",
)


_ANSWER_SYSTEM = """\
"You are a professional question answering model. Your task is to carefully \
think through the question based on the information retrieved and then \
provide the final answer.

Strict Output Format:\x20
<think>\x20
[Analyze the original question and the retrieved information. Break down the \
reasoning process step by step. Do NOT provide the final answer yet.]\x20
</think>\x20
<answer>\x20
[Provide the final answer based solely on the retrieved information.]
</answer>
"""


_FINAL_SYSTEM = """\
"You are a professional question answering model. Your task is to carefully \
think through the question based on the sub-quetsions and its answers and \
then provide the final answer.

Strict Output Format:\x20
<think>\x20
[Analyze the original question and sub-questions with its answers. Break down \
the reasoning process step by step. Do NOT provide the final answer yet.]\x20
</think>\x20
<answer>\x20
[Provide the final answer based solely on the information before.]
</answer>
"""


# Ours: the original's speaks of tags that its other prompts do not have.
_REPAIR = (
  "\n\nYour last reply to this was:\n{}\nIt cannot be used: {}.\nReply once "
  "more, in exactly the format that is asked for above, with nothing outside "
  "of it."
)


STYLES = {
  "full": Style(
    system=dict(plan=_PLAN_SYSTEM, answer=_ANSWER_SYSTEM, final=_FINAL_SYSTEM),
    several=_SEVERAL_SYSTEM,
    question="Origin question: {}\n",
    rounds="Sub-question%d: {}\nAnswer%d: {}\n",
    final="Now, give me the final answer of the origin question: {}",
    passages=(
      "According to the related information searched, `ter` means this "
      "info is from text retriever, `tir` means this info is from text "
      "image retriever, `tar` means this info is from table retriever:"
    ),
    passage="%s-%d: {}\n",
    asked=(
      "\n\n Give me the answer(with the format <answer></answer>) to "
      "the Question: {}"
    ),
    repair=_REPAIR,
    tags=dict(text="ter", image="tir", table="tar"),
    image_first=False,
    answer_image=True,
    fold_case=True,
  ),
  "compact": Style(
    system=dict(plan="<|plan|>", answer="<|answer|>", final="<|final|>"),
    several="<|plan|>",
    question="Q: {}\n",
    rounds="{} {}\n",
    final="",
    passages="Q: {}\n",
    passage="{}\n",
    asked="",
    repair="",
    tags={},
    image_first=True,
    answer_image=False,
    fold_case=False,
  ),
}
