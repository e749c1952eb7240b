"""The wording of prompts: data only, read by `prompts.py`.

"full" is the interface of the published R1-Router weights, kept to the letter,
slips included: its texts are those of the rows that the weights were trained
on (the Step-GRPO validation rows released with R1-Router; of two variants of
the plan prompt, which differ in a trailing newline, the more common one).

"compact" is for a tiny policy: the system turn is one special token, and
answer steps get no image, since the passages' captions say what it shows and
its patches would double the prompt.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
  """The wording of all prompts; templates hold `{}` where untrusted text goes.

  Attributes:
    system: the system turn of each kind of step.
    multi_route_system: the system turn of a plan that may name several routes;
      `%d` is the largest number of them.
    question: opens plan and final steps.
    rounds: one round of the history; `%d` is its number, from 1.
    final: ends the final step; may name the question once more.
    passages: opens an answer step.
    passage: one passage; `%s` is the knowledge base's entry in `tags`, `%d` the
      passage's rank within that knowledge base, from 0.
    asked: the sub-question at the end of an answer step; empty if `passages`
      names it.
    repair: asks once more after a response that failed, with its text and the
      reason; "" for policies that would not understand it.
    tags: short names of the knowledge bases.
    image_first: whether an image stands before the text.
    answer_image: whether answer steps see the question's image.
    fold_case: whether history and sub-questions are lower-cased.
  """

  system: dict[str, str]
  multi_route_system: str
  question: str
  rounds: str
  final: str = ""
  passages: str
  passage: str
  asked: str = ""
  repair: str = ""
  tags: dict[str, str] = dataclasses.field(default_factory=dict)
  image_first: bool = False
  answer_image: bool = False
  fold_case: bool = False


# The published text; trailing white space and newlines are part of it.
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

# Not R1-Router's: its own plans name one route.
_MULTI_ROUTE_SYSTEM = _PLAN_SYSTEM.replace(
  "[Choose 1 retriever from:",
  "[Choose 1 to %d retrievers, with commas between them, from:",
)

# The quotation mark at the start is the original's.
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

# The misspelling "quetsions" is the original's, too.
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

# Not R1-Router's: its own speaks of tags that its other prompts do not have.
_REPAIR = (
  "\n\nYour last reply to this was:\n{}\nIt cannot be used: {}.\nReply once "
  "more, in exactly the format that is asked for above, with nothing outside "
  "of it."
)

STYLES = {
  "full": Style(
    system=dict(plan=_PLAN_SYSTEM, answer=_ANSWER_SYSTEM, final=_FINAL_SYSTEM),
    multi_route_system=_MULTI_ROUTE_SYSTEM,
    # The question opens the prompt and, in the final step, closes it.
    question="Origin question: {}\n",
    rounds="Sub-question%d: {}\nAnswer%d: {}\n",
    final="Now, give me the final answer of the origin question: {}",
    # Passages come first, then the sub-question that they should answer.
    passages=(
      "According to the related information searched, `ter` means this info is "
      "from text retriever, `tir` means this info is from text image "
      "retriever, `tar` means this info is from table retriever:"
    ),
    passage="%s-%d: {}\n",
    asked=(
      "\n\n Give me the answer(with the format <answer></answer>) to "
      "the Question: {}"
    ),
    repair=_REPAIR,
    # As in the sentence that opens the passages.
    tags=dict(text="ter", image="tir", table="tar"),
    answer_image=True,
    fold_case=True,
  ),
  "compact": Style(
    system=dict(plan="<|plan|>", answer="<|answer|>", final="<|final|>"),
    # The tiny policy learns from its data how many routes it may name.
    multi_route_system="<|plan|>",
    question="Q: {}\n",
    rounds="{} {}\n",
    passages="Q: {}\n",
    passage="{}\n",
    image_first=True,
  ),
}
