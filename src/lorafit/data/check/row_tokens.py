"""One row as a model sees it: token by token, with what is trained and what was cut."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafit.data.labels import Label

WHOLE = 1 << 31
"""Tokens: no limit."""
GAP = " [...] "
"""Between pieces of a text."""


@dataclass(frozen=True)
class RowTokens:
    """A row's tokens.

    Attributes:
        where: The row's place.
        tokens: Token ids.
        texts: Of each the text.
        trained: Of each whether the loss counts it (of a classification: none; the class is).
        cut: Tokens that are left out, by the side they lay on: `{"prompt": n}`, `{"answer": n}`.
        lost: The text of these.
        label: The class, the classes or the amount, of a classification.
        tags: Of each trained token its tag, of a token classification.
    """

    where: str
    tokens: list[int]
    texts: list[str]
    trained: list[bool]
    cut: dict[str, int] = field(default_factory=dict)
    lost: str = ""
    label: Label | None = None
    tags: list[str | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        tokens: list[dict[str, Any]] = [
            {"id": token, "text": text, "trained": trained}
            for token, text, trained in zip(self.tokens, self.texts, self.trained, strict=True)
        ]
        for token, tag in zip(tokens, self.tags or (), strict=self.tags is not None):
            token["tag"] = tag
        return {"where": self.where, "tokens": tokens, "cut": self.cut, "lost": self.lost, "label": self.label}


def lost_texts(tokenizer: Any, whole: Sequence[int], kept: Sequence[int]) -> str:
    """What is in `whole` and not in `kept`, as text."""
    codes = difflib.SequenceMatcher(None, whole, kept, autojunk=False).get_opcodes()
    lost = [list(whole[a:b]) for tag, a, b, _, _ in codes if tag != "equal"]
    return GAP.join(str(tokenizer.decode(piece)) for piece in lost if piece)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's text; joined they are the row's. A character of several tokens stands at its last one."""
    texts = [""] * len(ids)
    start = read = 0  # decoding goes on from the token before, as some tokenizers drop a first space
    for end in range(1, len(ids) + 1):
        before, text = (
            tokenizer.decode(ids[start:to], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for to in (read, end)
        )
        if not text.endswith("\ufffd") or end == len(ids):
            texts[end - 1] = text[len(before) :]
            start, read = read, end
    return texts
