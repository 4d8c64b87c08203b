"""Tokens of texts, and which of them a span of characters became."""

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Span = tuple[int, int]
"""Start and end, the end excluded."""


def common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items two sequences share from their start."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


class Tokens:
    """A tokenizer that also says which tokens a span of characters became.

    A text is cut where a span starts and the pieces are tokenized alone. So the tokens before an answer are exactly the
    prompt's as generation will see it: no token reaches over the border, and what follows changes none before it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = _without_trimmed_offsets(tokenizer)
        newline = self.ids("\n")
        # SentencePiece-like tokenizers put a space before every text: such a piece is tokenized after a newline instead
        self._lead = [] if self.ids("\na") == newline + self.ids("a") else newline

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, special tokens recognized, none added."""
        return self._call([text])["input_ids"][0]

    def is_special(self, token_id: int) -> bool:
        """Whether a token is one of the tokenizer's special tokens."""
        added = self._tokenizer.added_tokens_decoder.get(token_id)
        return token_id in self._tokenizer.all_special_ids or (added is not None and added.special)

    def encode(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[tuple[list[int], list[Span]]]:
        """Tokenizes texts in one batch.

        Args:
            texts: Rendered conversations.
            spans: Spans of characters of each, ascending.

        Returns:
            For each text its token ids and the spans in tokens.
        """
        if not self._tokenizer.is_fast:
            return [self._encode_slowly(text, wanted) for text, wanted in zip(texts, spans, strict=True)]
        cuts = [
            [0, *(start for start, _ in wanted if start > 0), len(text)]
            for text, wanted in zip(texts, spans, strict=True)
        ]
        pieces = [
            ("\n" if self._lead and start else "") + text[start:end]
            for text, borders in zip(texts, cuts, strict=True)
            for start, end in pairwise(borders)
        ]
        encodings = iter(_encodings(self._call(pieces)) if pieces else [])
        result = []
        for text, borders, wanted in zip(texts, cuts, spans, strict=True):
            ids, offsets = self._join(text, borders, list(islice(encodings, len(borders) - 1)))
            result.append((ids, [_tokens_of(offsets, span) for span in wanted]))
        return result

    def _join(self, text: str, borders: list[int], encodings: "list[Encoding]") -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        offsets: list[Span] = []
        for start, encoding in zip(borders[:-1], encodings, strict=True):
            skip, shift = (len(self._lead), start - 1) if self._lead and start else (0, start)
            if skip and encoding.ids[:skip] != self._lead:  # the newline merged with the piece: cutting would change it
                whole = _encodings(self._call([text]))[0]
                return whole.ids, whole.offsets
            ids += encoding.ids[skip:]
            offsets += [(a + shift, b + shift) for a, b in encoding.offsets[skip:]]
        return ids, offsets

    def _encode_slowly(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Without offsets: a border is where the tokens stop being those of the text before it."""
        ids = self.ids(text)
        return ids, [(self._common(text[:start], ids), self._common(text[:end], ids)) for start, end in spans]

    def _common(self, prefix: str, ids: list[int]) -> int:
        """How many of the tokens are those of the prefix: a slow tokenizer's way to find a border."""
        return common_length(self.ids(prefix), ids)

    def _call(self, texts: list[str]) -> "BatchEncoding":
        return self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )


def _tokens_of(offsets: list[Span], span: Span) -> Span:
    """The tokens that overlap a span of characters."""
    first = bisect_right(offsets, span[0], key=lambda offset: offset[1])
    return first, max(first, bisect_left(offsets, span[1], key=lambda offset: offset[0]))


def _encodings(batch: "BatchEncoding") -> "list[Encoding]":
    assert batch.encodings is not None, "a fast tokenizer has them"
    return batch.encodings


def _without_trimmed_offsets(tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedTokenizerBase":
    """A tokenizer whose offsets count whitespace.

    Byte-level ones (GPT-2, Llama 3) trim it in a post-processor, whose other task, adding special tokens, is not wanted
    here.
    """
    if not tokenizer.is_fast:
        return tokenizer
    offsets = _encodings(tokenizer(["a b"], add_special_tokens=False))[0].offsets
    if sum(end - start for start, end in offsets) == len("a b"):
        return tokenizer
    own = copy.deepcopy(tokenizer)
    cast("Tokenizer", own.backend_tokenizer).post_processor = None  # pyright: ignore[reportAttributeAccessIssue]
    return own
