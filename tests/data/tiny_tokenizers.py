"""Tokenizers trained on the spot: a byte-level one, a SentencePiece-like one, and one without a Rust backend."""

import json
import re
from collections.abc import Sequence
from functools import cache

from chat_templates import SPECIAL
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = [
    "### Instruction:\nWhat is the capital of France?\n\n### Response:\nThe capital of France is Paris.",
    "user: hello there\nassistant: Hello! How can I help you today?\n\n",
    "The quick brown fox jumps over the lazy dog.\n\n1. First item\n2. Second item\n\n\n",
    "<think>\nsome thinking\n</think>\n\nSo the answer is 42. model system assistant",
] * 5


@cache
def byte_level(
    trim_offsets: bool = False, adds_bos: bool = False, special: tuple[str, ...] = tuple(SPECIAL)
) -> PreTrainedTokenizerFast:
    """Like Qwen's (offsets whole) or Llama 3's (offsets trimmed, BOS added)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
        ),
    )
    steps: list = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    core.post_processor = processors.Sequence(steps)
    return _wrap(core, special)


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """Like Llama 2's: a space is put before the text, unknown bytes fall back, BOS is added."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.train_from_iterator(
        [line for text in CORPUS for line in text.split("\n")],  # a newline stays a byte, as in Llama 2
        trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *SPECIAL], show_progress=False),
    )
    state = json.loads(core.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    core = Tokenizer.from_str(json.dumps(state))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(core)


@cache
def unigram(kind: str = "t5") -> PreTrainedTokenizerFast:
    """SentencePiece's unigram model, as encoder-decoders have it: T5's ends with </s>, BART's begins with <s>, too."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    if kind != "bare":
        around = {"t5": "$A </s>", "bart": "<s> $A </s>"}[kind]
        core.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=around, special_tokens=[("</s>", 1), ("<s>", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


def _wrap(core: Tokenizer, special: Sequence[str] = SPECIAL) -> PreTrainedTokenizerFast:
    extra = [token for token in special if token not in ("<s>", "</s>")]
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", extra_special_tokens=extra)


class Words(PreTrainedTokenizer):
    """A tokenizer in Python: words, runs of whitespace (they merge over borders) and single characters."""

    def __init__(self, **kwargs):
        self.known: dict[str, int] = {}
        extra = [token for token in SPECIAL if token not in ("<s>", "</s>")]
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=extra, **kwargs)

    @property
    def vocab_size(self) -> int:
        return 100_000

    def get_vocab(self) -> dict[str, int]:
        return {**self.known, **self.added_tokens_encoder}

    def _tokenize(self, text, **kwargs):
        return re.findall(r"\s+|\w+|[^\w\s]", text)

    def _convert_token_to_id(self, token):
        return self.known.setdefault(token, len(self.known) + 1000)

    def _convert_id_to_token(self, index):
        return next(token for token, known in self.known.items() if known == index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
