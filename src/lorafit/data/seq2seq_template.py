"""Sources and targets as an encoder-decoder's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafit.data.rows import Message
from lorafit.data.source_target import source_of
from lorafit.data.tokens import common_length
from lorafit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPair:
    """Tokens of one row.

    Attributes:
        source: what the encoder reads, with the tokenizer's special tokens.
        target: the labels, with its end token; without it where the target was cut, so that no end is taught there.
        source_cut: tokens lost at the source's end.
        target_cut: tokens lost at the target's end.
    """

    source: list[int]
    target: list[int]
    source_cut: int
    target_cut: int


@dataclass(frozen=True)
class _Frame:
    """The special tokens around a text."""

    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, nothing: list[int], something: list[int]) -> "_Frame":
        """From the tokens of no text and of some text."""
        at = common_length(nothing, something)
        return cls(nothing[:at], nothing[at:])


class Seq2SeqTemplate:
    """What turns a source into the encoder's tokens, and a target into labels; prompts go through it too.

    Args:
        tokenizer: The base model's; of a multilingual one the languages are set.
        prefix: Written before each source.
        max_length: The most tokens of a source.
        max_target_length: The most tokens of a target; None is `max_length`.
        source_lang: The sources' language, for a multilingual tokenizer.
        target_lang: The targets' language.

    Attributes:
        stop_token_ids: End an answer.
        source_end: Special tokens that end every source, a cut one too.
        target_start: Special tokens that every target begins with (BART's <s>, a language).
        target_end: Those that end it.
        notes: Sentences for the summary.

    Raises:
        DataError: The tokenizer has no end token, or does not know the languages.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        prefix: str = "",
        max_length: int = 2048,
        max_target_length: int | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> None:
        self.tokenizer, self.prefix = tokenizer, prefix
        self.max_length, self.max_target_length = max_length, max_target_length or max_length
        self.notes: list[str] = []
        if tokenizer.eos_token_id is None:
            raise DataError(f"the tokenizer of {tokenizer.name_or_path} has no end token, so no target could end")
        _set_languages(tokenizer, source_lang, target_lang)
        end: Any = tokenizer.eos_token_id
        self._end: int = end
        self._source = _Frame.of(*self._ids(["", "a"]))
        self.source_end = self._source.after
        nothing, something = self._ids(["", "a"], target=True)
        self._adds_end = self._end not in nothing  # as the tokenizers of language models
        if self._adds_end:
            self.notes.append(f"The tokenizer ends targets with no end token: {tokenizer.eos_token} is added to each.")
            nothing, something = [*nothing, self._end], [*something, self._end]
        self._target = _Frame.of(nothing, something)
        self.target_start, self.target_end = self._target.before, self._target.after
        self.stop_token_ids = [self._end]

    def prompt_ids(self, messages: Sequence[Message], tools: Any = None) -> list[int]:
        """What the encoder reads for the messages before an answer, joined by a blank line."""
        return self._cut(self._ids([self.prefix + source_of(messages)])[0], self._source, self.max_length)

    def encode(self, sources: Sequence[str], targets: Sequence[str]) -> list[EncodedPair]:
        """Tokens of rows, cut to the longest lengths allowed."""
        if not sources:
            return []
        found = []
        whole = self._ids([self.prefix + source for source in sources]), self._ids(targets, target=True)
        for source, target in zip(*whole, strict=True):
            target = [*target, self._end] if self._adds_end else target
            short, labels = self._cut(source, self._source, self.max_length), target[: self.max_target_length]
            found.append(EncodedPair(short, labels, len(source) - len(short), len(target) - len(labels)))
        return found

    def _cut(self, ids: list[int], frame: _Frame, most: int) -> list[int]:
        """Without the text's end where it is too long; what the tokenizer puts behind a text stays."""
        if len(ids) <= most:
            return ids
        return ids[: most - len(frame.after)] + frame.after

    def _ids(self, texts: Sequence[str], *, target: bool = False) -> list[list[int]]:
        sides: dict[str, Any] = {"text_target" if target else "text": list(texts)}
        return self.tokenizer(**sides, verbose=False, return_attention_mask=False, return_token_type_ids=False)[
            "input_ids"
        ]


def _set_languages(tokenizer: "PreTrainedTokenizerBase", source: str | None, target: str | None) -> None:
    """Tell a multilingual tokenizer its languages; any other refuses them."""
    kind, given = type(tokenizer).__name__, [language for language in (source, target) if language]
    if not hasattr(type(tokenizer), "src_lang"):  # transformers has no common class of those that have
        if given:
            raise DataError(
                f"data.source_lang and data.target_lang are for multilingual tokenizers; {kind} writes no language "
                "into a text: leave them out (T5 reads what to do in data.source_prefix)"
            )
        return
    if len(given) < 2:
        raise DataError(
            f"{kind} writes the language into each text: set data.source_lang and data.target_lang, to such as en_XX "
            "and de_DE (mBART), eng_Latn and deu_Latn (NLLB) or en and de (M2M100)"
        )
    languages: Any = tokenizer
    try:
        languages.src_lang, languages.tgt_lang = source, target
        ids = [*tokenizer("")["input_ids"], *tokenizer(text_target="")["input_ids"]]
    except KeyError as error:
        raise DataError(f"{kind} does not know the language {error}") from error
    if tokenizer.unk_token_id in ids or None in ids:
        raise DataError(f"{kind} does not know one of the languages {source!r} and {target!r}")
