"""Tokenizers of GGUF files: ids by hand and by transformers; broken files."""

import json

import pytest
import tokenizers

from r1router_jax.common.errors import UserError
from r1router_jax.inputs import gguf_tokenizer
from r1router_jax.inputs.tokenizer import Tokenizer
from r1router_jax.protocol.messages import Conversation, PassageTokens, Segment
from tests import tiny_gguf

# Names with accents, digits, tables, other scripts, white space, control.
TEXTS = (
  "the errée Ōgata Kōrin, né 1658; Zürich",
  "| year | 2020 |\n|---|---|\n| 1,234.5 km² | don't they'll |",
  "日本語 テスト １２ ½ 🇹🇩",
  " the\n\n\n x\t5 \r\n",
  "<|im_start|>user\nHi [sep] <|im_end|>",
  "",
)

# As SentencePiece writes a space.
SPELT_OTHERWISE = ["▁" if x == "!" else x for x in tiny_gguf.make_tokens()]


def read_tokenizer(path):
  files = gguf_tokenizer.read_tokenizer_files(path)
  return tokenizers.Tokenizer.from_str(files["tokenizer.json"])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_pieces_by_hand(kind, tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf", kind)
  coder = read_tokenizer(tmp_path / "a.gguf")
  encoded = coder.encode("the  2020 né[sep]<|im_end|>")
  spaces = ["ĠĠ"] if kind == "llama" else ["Ġ", "Ġ"]
  assert encoded.tokens == [
    *("t", "he", *spaces, "2", "0", "2", "0", "Ġ", "n", "Ã©"),
    *("[sep]", "<|im_end|>"),
  ]
  known = {token: i for i, token in enumerate(tiny_gguf.make_tokens())}
  assert encoded.ids == [known[token] for token in encoded.tokens]
  # Rows that pad the embedding are no tokens.
  assert coder.token_to_id("[PAD0]") is None
  assert coder.decode(encoded.ids[:-1], skip_special_tokens=False) == (
    "the  2020 né[sep]"
  )
  # Qwen2's text is composed: a letter and its accent become one.
  joined = coder.encode("e\u0301").tokens
  assert joined == (["Ã©"] if kind == "qwen2" else ["e", "Ì", "ģ"])


def test_what_transformers_is_told(tmp_path):
  keys = {"tokenizer.chat_template": "{{ messages }}"}
  tiny_gguf.write_gguf(tmp_path / "a.gguf", keys=keys)
  files = gguf_tokenizer.read_tokenizer_files(tmp_path / "a.gguf")
  assert json.loads(files["tokenizer_config.json"]) == dict(
    tokenizer_class="PreTrainedTokenizerFast",
    clean_up_tokenization_spaces=False,
    bos_token="<|im_start|>",
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    unk_token="<|endoftext|>",
    chat_template="{{ messages }}",
  )


def test_control_tokens_in_a_question_are_text(tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf")
  coder = Tokenizer(tmp_path / "a.gguf", "compact")
  asked = Segment("<|im_end|>", "question")
  prompt = Conversation("plan", "<|im_end|>", (asked,))
  ids = coder.encode(prompt, (), 64, PassageTokens()).ids
  # Of the system turn, which is trusted; at the end, the reply begins.
  assert ids[0] == coder.eos_id == 2 and ids[-1] == 1
  assert not {0, 1, 2} & set(ids[1:-1]) and len(ids) > 10


@pytest.mark.parametrize(
  "keys, words",
  [
    ({"tokenizer.ggml.model": "llama"}, "model is 'llama', known: gpt2"),
    ({"tokenizer.ggml.pre": "tekken"}, "pre is 'tekken', known: smollm, qwen2"),
    ({"tokenizer.ggml.pre": None}, "pre is 'None'"),
    ({"tokenizer.ggml.tokens": None}, "no strings tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "no strings tokenizer.ggml.tokens"),
    ({"tokenizer.ggml.merges": None}, "no strings tokenizer.ggml.merges"),
    ({"tokenizer.ggml.token_type": [1]}, "269 tokens have 1 types"),
    ({"tokenizer.ggml.token_type": 1}, "269 tokens have 1 types"),
    ({"tokenizer.ggml.tokens": ["a"] * 269}, "a token occurs twice"),
    (
      {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.token_type": [1]},
      "1 tokens are not one for each embedding",
    ),
    ({"tokenizer.ggml.merges": ["a b"]}, "merge 'a b' is not one of its"),
    ({"tokenizer.ggml.merges": ["ab"]}, "merge 'ab' is not one of its"),
    ({"tokenizer.ggml.tokens": SPELT_OTHERWISE}, "token '▁' is not spelt in"),
  ],
)
def test_a_broken_tokenizer_is_refused(keys, words, tmp_path):
  tiny_gguf.write_gguf(tmp_path / "a.gguf", keys=keys)
  with pytest.raises(UserError, match=f"a.gguf: .*{words}.*Give the GGUF"):
    gguf_tokenizer.read_tokenizer_files(tmp_path / "a.gguf")


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_ids_are_those_of_transformers(kind, tmp_path):
  """With each digit on its own for SmolLM2, which transformers leaves out."""
  transformers = pytest.importorskip("transformers")
  tiny_gguf.write_gguf(tmp_path / "a.gguf", kind)
  theirs = transformers.AutoTokenizer.from_pretrained(
    tmp_path, gguf_file="a.gguf"
  ).backend_tokenizer
  if kind == "llama":
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    words = theirs.pre_tokenizer
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, words])
  ours = read_tokenizer(tmp_path / "a.gguf")
  for text in TEXTS:
    ids = ours.encode(text).ids
    assert ids == theirs.encode(text, add_special_tokens=False).ids, text
