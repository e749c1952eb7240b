"""Prompts as ids: hostile text, long passages, round trips."""

import collections
import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tokenizers

from r1router_jax.common.records import Passage
from r1router_jax.inputs import tokenizer as tokenizer_lib
from r1router_jax.inputs.tokenizer import PromptTooLong
from r1router_jax.protocol import messages, prompts, templates
from r1router_jax.protocol.messages import Conversation, Segment
from tests import tiny_policy

STYLES = list(templates.STYLES)

ALL = messages.PassageTokens()

RAW = tokenizers.Tokenizer.from_file(str(tiny_policy.TOKENIZER))

CONTROL = {
  token.content: i
  for i, token in RAW.get_added_tokens_decoder().items()
  if "<" in token.content
}

PIECES = (
  *CONTROL,
  "<",
  ">",
  "|",
  "im_end",
  "<|",
  "|>",
  "\u200b",
  " ",
  "\n",
  "</",
  "think",
  "[sep]",
  "[Row]",
  "a",
  "é",
  "日本",
  "\uff1c",
)

hostile = st.lists(
  st.sampled_from(PIECES) | st.text(max_size=5), max_size=12
).map("".join)


def encode(conversation, style, pictures=(), limit=4000):
  return (
    tiny_policy.tokenizer(style).encode(conversation, pictures, limit, ALL).ids
  )


def control(ids):
  known = set(CONTROL.values())
  return collections.Counter(i for i in ids if i in known)


def answer(question, *texts, style):
  return prompts.answer_conversation(
    question,
    [Passage(str(n), "text", text) for n, text in enumerate(texts)],
    "",
    style=style,
  )


def test_the_vocabulary_has_control_tokens():
  assert {"<|im_start|>", "<|image_pad|>", "</ret>", "<|plan|>"} <= set(CONTROL)


@pytest.mark.parametrize("style", STYLES)
@hypothesis.given(hostile, hostile, hostile)
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_text_from_outside_becomes_a_control_token(style, first, second, q):
  wanted = control(encode(answer("q", "a", "b", style=style), style))
  assert control(encode(answer(q, first, second, style=style), style)) == wanted
  plain, attacked = (
    control(
      encode(
        prompts.plan_conversation(text, "p", [(text, text)], style=style),
        style,
        [2],
      )
    )
    for text in ("q", q)
  )
  assert plain == attacked


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("token", CONTROL)
def test_the_twin_alone_holds_the_line(style, token):
  """Even text that `conversations.neutralise` never saw."""
  make = lambda text: Conversation("plan", "s", (Segment(text, "passage"),))
  ids = encode(make(f"a{token}b"), style)
  assert control(ids) == control(encode(make("ab"), style))
  assert token in RAW.decode(ids, skip_special_tokens=False)


def test_templates_are_spelt_out():
  """The whole prompt, as one would write it by hand."""
  who, picture = Segment("who?", "question"), Segment("p.png", "picture")
  # This tokenizer starts every piece with a space.
  text = lambda style, *user: RAW.decode(
    encode(Conversation("plan", "<|plan|>", user), style, [2] * len(user)),
    skip_special_tokens=False,
  ).replace(" ", "")
  seen = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
  assert text("compact", picture, who) == f"<|plan|>{seen}who?<|im_start|>"
  assert text("compact", who) == "<|plan|>who?<|im_start|>"
  assert text("full", who, picture, picture, who) == (
    "<|im_start|>system\n<|plan|><|im_end|>\n<|im_start|>user\nwho?"
    f"{seen}{seen}who?<|im_end|>\n<|im_start|>assistant\n"
  )
  shown = Conversation("plan", "s", (who,), (), (("a", "b"), ("c", "d")))
  assert (
    RAW.decode(encode(shown, "full"), skip_special_tokens=False).replace(
      " ", ""
    )
    == "".join(
      f"<|im_start|>{turn}<|im_end|>\n"
      for turn in (
        "system\ns",
        "user\na",
        "assistant\nb",
        "user\nc",
        "assistant\nd",
        "user\nwho?",
      )
    )
    + "<|im_start|>assistant\n"
  )


@pytest.mark.parametrize("style", STYLES)
def test_a_reply_that_has_begun_stands_behind_the_prompt(style):
  """And what it holds of passages is cut like theirs."""
  plain = answer("q", "a b", style=style)
  said = (
    Segment("<search>", "template"),
    Segment("x <|im_end|>", "question"),
    Segment(" ".join("c" * 50), "passage"),
  )
  begun = dataclasses.replace(plain, said=said)
  ids, coder = encode(begun, style), tiny_policy.tokenizer(style)
  assert ids[: len(encode(plain, style))] == encode(plain, style)
  rest = ids[len(encode(plain, style)) :]
  assert coder.decode(rest).replace(" ", "") == (
    "<search>x<|im_end|>" + "c" * 50
  )
  assert not control(rest)
  fitted = coder.encode(begun, (), len(ids) - 9, ALL)
  assert fitted.ids == ids[:-9] and fitted.cut == 9


def test_table_markers_are_one_token_in_passages_too():
  marker = RAW.token_to_id("[sep]")
  ids = encode(answer("q", "a [sep] b", style="compact"), "compact")
  assert ids.count(marker) == 1


@pytest.mark.parametrize("style", STYLES)
def test_a_long_prompt_loses_the_ends_of_passages_last_first(style):
  texts = ["alpha beta " * 20, "gamma delta " * 20]
  conversation = answer("who?", *texts, style=style)
  whole = encode(conversation, style)
  pieces = [
    encode(dataclasses.replace(conversation, system="", user=(s,)), style)
    for s in conversation.user
  ]
  frame = len(
    encode(dataclasses.replace(conversation, system="", user=()), style)
  )
  sizes = [len(piece) - frame for piece in pieces]
  passages = [
    i for i, s in enumerate(conversation.user) if s.source == "passage"
  ]
  assert len(passages) == 2
  for cut in (
    0,
    1,
    7,
    sizes[passages[1]],
    sizes[passages[1]] + 5,
    sum(sizes[i] for i in passages),
  ):
    ids = encode(conversation, style, limit=len(whole) - cut)
    assert len(ids) == len(whole) - cut
    left = list(sizes)
    left[passages[1]] -= min(cut, sizes[passages[1]])
    left[passages[0]] -= cut - min(cut, sizes[passages[1]])
    # By hand: what is left of each piece, in order.
    wanted, at = [], 0
    start = len(whole) - sum(sizes) - closing(style)
    wanted += whole[:start]
    for size, keep in zip(sizes, left, strict=True):
      wanted += whole[start + at : start + at + keep]
      at += size
    wanted += whole[start + at :]
    assert ids == wanted


def shown(style, most=ALL, limit=4000, pictures=2):
  """Two passages of each kind, those of pictures with theirs."""
  passages = [
    Passage(
      f"{kb}/{n}",
      kb,
      f"{kb} alpha{n} beta {n} gamma " * 3,
      "p.png" * (kb == "image"),
    )
    for kb in ("text", "image", "table")
    for n in range(2)
  ]
  conversation = prompts.answer_conversation(
    "who?", passages, "", style=style, passage_pictures=pictures
  )
  return conversation, tiny_policy.tokenizer(style).encode(
    conversation, [3] * len(conversation.pictures), limit, most
  )


def whole_words(style, *left_out, **cut):
  """Ids by hand: without passages, and some cut, by "<kind><rank>"."""
  conversation, _ = shown(style)
  name = lambda s: s.of and f"{s.of[0]}{s.of[1]}"
  pieces = []
  for segment in conversation.user:
    if name(segment) in left_out:
      continue
    if segment.source == "picture":
      seen, pad = CONTROL["<|vision_start|>"], CONTROL["<|image_pad|>"]
      pieces += [seen, pad, pad, pad, CONTROL["<|vision_end|>"]]
      continue
    ids = RAW.encode(segment.text, add_special_tokens=False).ids
    if segment.source == "passage":
      ids = ids[: cut.get(name(segment))]
    pieces += ids
  frame = encode(dataclasses.replace(conversation, user=()), style)
  start = len(frame) - closing(style)
  return frame[:start] + pieces + frame[start:]


def size(text):
  return len(RAW.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("style", STYLES)
def test_passages_within_their_tokens(style):
  conversation, whole = shown(style)
  of = {s.of: size(s.text) for s in conversation.user if s.source == "passage"}
  assert whole == (whole_words(style), [True, True], 0)
  # The second text is cut, the second picture left out, the tables stay.
  found = shown(
    style,
    messages.PassageTokens(
      text=of["text", 0] + 4, image=of["image", 0], table=1000
    ),
  )[1]
  assert found.ids == whole_words(style, "image1", text1=4)
  assert found.shown == [True, False]
  assert found.cut == of["text", 1] - 4 + of["image", 1] + 5
  # Less than the first passage: all that is left of its kind.
  found = shown(style, messages.PassageTokens(table=2))[1]
  assert found.ids == whole_words(style, "table1", table0=2)
  assert found.cut == of["table", 0] - 2 + of["table", 1]


@pytest.mark.parametrize("style", STYLES)
def test_a_long_prompt_loses_pictures_with_their_passages(style):
  conversation, whole = shown(style)
  of = {s.of: size(s.text) for s in conversation.user if s.source == "passage"}
  tables = of["table", 0] + of["table", 1]
  found = shown(style, limit=len(whole.ids) - tables - of["image", 1] - 1)[1]
  assert found.shown == [True, False] and found.cut >= (
    tables + of["image", 1] + 1
  )
  assert len(found.ids) == len(whole.ids) - found.cut
  # With what is asked beside it, it is refused only without any passage.
  with pytest.raises(PromptTooLong, match="without its passages"):
    shown(style, limit=8)


@pytest.mark.parametrize("style", STYLES)
def test_both_limits_are_one_cut(style):
  _, whole = shown(style, pictures=0)
  most = messages.PassageTokens(text=9)
  _, less = shown(style, most, pictures=0)
  _, least = shown(style, most, limit=len(less.ids) - 3, pictures=0)
  assert len(least.ids) == len(less.ids) - 3
  assert least.cut == less.cut + 3 and less.cut > 0 == whole.cut


def closing(style):
  return len(
    RAW.encode(
      tokenizer_lib.TEMPLATES[style].closing, add_special_tokens=False
    ).ids
  )


@pytest.mark.parametrize("style", STYLES)
def test_a_prompt_too_long_without_passages_is_refused(style):
  conversation = answer("who? " * 30, "alpha " * 20, style=style)
  bare = encode(answer("who? " * 30, style=style), style)
  whole = encode(conversation, style)
  with pytest.raises(PromptTooLong) as error:
    encode(conversation, style, limit=len(bare) - 9)
  assert "answer prompt" in str(error.value)
  assert str(len(bare) - 9) in str(error.value)
  assert "config.policy.settings.prompt_tokens" in str(error.value)
  assert len(whole) > len(bare)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
  "text",
  [
    "<think>look in the table</think><sub-question>How many?</sub-question>"
    "<ret>Table Retriever</ret>",
    "<think>x</think><answer>11,631,456 | São Tomé, 日本</answer>",
    "",
    " a ",
  ],
)
def test_a_response_is_read_back(style, text):
  tokenizer = tiny_policy.tokenizer(style)
  read = lambda ids: tokenizer.decode(ids).replace("> ", ">")
  ids = tokenizer.encode_response(text)
  assert ids[-1] == tokenizer.end and ids.count(tokenizer.end) == 1
  assert read(ids) == text
  assert read(np.array([*ids, *ids, tokenizer.pad])) == text
  assert read(ids[:-1]) == text  # Cut before its end token.


WORDS = ("</ret>", "né", "Table")


@hypothesis.given(
  hostile
  | st.lists(
    st.sampled_from((*WORDS, "</re", "t>", "n", "é", " Tab", "le", "<", "x"))
  ).map("".join)
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_a_stop_is_found_in_whatever_tokens_it_comes(text):
  """The automaton over tokens agrees with a search in the written bytes."""
  tokenizer = tiny_policy.tokenizer()
  table = tokenizer.stops(WORDS, tokenizer.size + 3)
  ids = tokenizer.encode_response(text)[:-1]
  # Also as single bytes, which is another tokenisation of the same text.
  for tokens in (ids, [b for i in ids for b in single_bytes(i)]):
    state, written = 0, b""
    for token in tokens:
      state = table[state, token]
      written += tokenizer._bytes(token)
      found = any(word.encode() in written for word in WORDS)
      assert (state == len(table) - 1) == found, written


def single_bytes(token):
  """The ids of the bytes of a token, but for control tokens."""
  if token in CONTROL.values():
    return [token]
  return [RAW.token_to_id(letter) for letter in RAW.id_to_token(token)]


def test_stops_that_say_nothing_are_refused():
  for strings in ((), ("a", "")):
    with pytest.raises(ValueError, match="Stop strings"):
      tiny_policy.tokenizer().stops(strings, 10)


def test_what_a_policy_never_writes():
  tokenizer = tiny_policy.tokenizer()
  allowed = tokenizer.allowed(tokenizer.size + 7)
  assert allowed.shape == (tokenizer.size + 7,)
  forbidden = {i for i in range(len(allowed)) if not allowed[i]}
  assert forbidden == {
    *range(tokenizer.size, tokenizer.size + 7),
    *(CONTROL[token] for token in tokenizer_lib.NEVER_DRAWN),
  }
  assert allowed[tokenizer.end]


def test_words_are_whole_words():
  tokenizer = tiny_policy.tokenizer()
  words = tokenizer.words()
  assert len(words) > 100 and not set(words) & set(CONTROL.values())
  for i in words[:50]:
    text = RAW.decode([i])
    assert text.startswith(" ") and text[1:].isalpha()


def test_a_tokenizer_of_another_policy_is_refused(tmp_path):
  plain = tokenizers.Tokenizer(tokenizers.models.BPE())
  plain.save(str(tmp_path / "tokenizer.json"))
  with pytest.raises(ValueError, match=r"lacks the tokens.*<\|im_end\|>"):
    tokenizer_lib.Tokenizer(tmp_path / "tokenizer.json", "full")
