"""Answers in OpenAI's shapes, whole and in pieces."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorafit.serve.job import Piece, SaidToken
from lorafit.serve.text import UNFINISHED


@dataclass
class Choice:
    """One answer, as far as it has come."""

    text: str = ""
    tokens: list[SaidToken] = field(default_factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0

    def add(self, piece: Piece) -> None:
        """Take in what came."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason
        self.completion_tokens = piece.completion_tokens


class Shape:
    """How one kind of request is answered.

    Args:
        tokenizer: Names tokens in log-probabilities.
        model: The name asked for.
        logprobs: Whether to tell them.
    """

    PREFIX, WHOLE, PART = "", "", ""  # of the id; values of "object"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str, logprobs: bool) -> None:
        self.tokenizer, self.model, self.logprobs = tokenizer, model, logprobs
        self.id, self.created = f"{self.PREFIX}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The answer to a request without streaming."""
        listed = [self.choice(i, choice) for i, choice in enumerate(choices)]
        return {**self._head(self.WHOLE), "choices": listed, "usage": usage}

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One event of a stream."""
        return {**self._head(self.PART), "choices": [self.delta(piece)]}

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Events that begin a stream of `count` choices."""
        raise NotImplementedError

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The event that ends a stream with `include_usage`."""
        return {**self._head(self.PART), "choices": [], "usage": usage}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """One of `choices`."""
        raise NotImplementedError

    def delta(self, piece: Piece) -> dict[str, Any]:
        """One of `choices` in an event."""
        raise NotImplementedError

    def name(self, token: int) -> str:
        """A token's own text."""
        text = self.tokenizer.decode([token])
        assert isinstance(text, str)
        return text

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    PREFIX, WHOLE, PART = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Who speaks, for each choice."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        head = self._head(self.PART)
        return [{**head, "choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}]}
                for i in range(count)]  # fmt: skip

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """With the message."""
        message = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
        logprobs = self._logprobs(choice.tokens)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def delta(self, piece: Piece) -> dict[str, Any]:
        """With what is new in the message."""
        delta = {"content": piece.text} if piece.text else {}
        logprobs = self._logprobs(piece.tokens) if piece.tokens else None
        return {"index": piece.index, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, tokens: Sequence[SaidToken]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = []
        for said in tokens:
            top = [self._token(*likely) for likely in said.logprobs.top]
            content.append({**self._token(said.token, said.logprobs.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.name(token)
        return {"token": text, "logprob": logprob, "bytes": None if UNFINISHED in text else list(text.encode())}


class CompletionShape(Shape):
    """`/v1/completions`."""

    PREFIX, WHOLE, PART = "cmpl", "text_completion", "text_completion"

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Nothing."""
        return []

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """With the text."""
        logprobs = self._logprobs(choice.tokens)
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def delta(self, piece: Piece) -> dict[str, Any]:
        """With the new text."""
        logprobs = self._logprobs(piece.tokens) if piece.tokens else None
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _logprobs(self, tokens: Sequence[SaidToken]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {
            "tokens": [self.name(said.token) for said in tokens],
            "token_logprobs": [said.logprobs.logprob for said in tokens],
            "top_logprobs": [{self.name(token): value for token, value in said.logprobs.top} for said in tokens],
            "text_offset": [said.offset for said in tokens],
        }
