"""A row's tokens as text, as far as it can be said: whole characters, and nothing that may become a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lorafit.evaluate.generate import text_of

UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes of a character that is not whole yet
KEPT = 8  # tokens decoded again before new ones: what a token reads as depends on its neighbours


class TextStream:
    """Turns tokens into text piece by piece; the pieces together are the whole text up to a stop string.

    Args:
        tokenizer: Special tokens are left out.
        stops: Strings that end the text and are no part of it.

    Attributes:
        stopped: Whether a stop string was met; nothing follows.
        length: Characters known so far, said or held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.stopped = False
        self.length = 0
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text is known
        self._held = ""

    def push(self, token: int) -> str:
        """The text that one more token allows to say."""
        self._window.append(token)
        return self._take(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._take(self._decoded(final=True), final=True)

    def _decoded(self, final: bool) -> str:
        known = text_of(self.tokenizer, self._window[: self._read])
        text = text_of(self.tokenizer, self._window)
        if not final and text.endswith(UNFINISHED):
            return ""
        self._read = len(self._window)
        if self._read > 2 * KEPT:
            self._window = self._window[-KEPT:]
            self._read = KEPT
        return text[len(known) :]

    def _take(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        self.length += len(new)
        text = self._held + new
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            self.length -= len(text) - min(found)
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
