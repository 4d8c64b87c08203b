"""What the engine is asked for, and what it tells while it works."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from lorafit.serve.sampling import Sampling, TokenLogprob
from lorafit.serve.text import TextStream


@dataclass(frozen=True)
class SaidToken:
    """A token of an answer with its log-probabilities.

    Attributes:
        token: Its id.
        offset: Where its text begins in the answer, in characters.
        logprobs: Of it and of the likeliest.
    """

    token: int
    offset: int
    logprobs: TokenLogprob


@dataclass(frozen=True)
class Piece:
    """Some text of one choice; the last piece has a finish reason.

    Attributes:
        index: Which choice.
        text: May be empty.
        tokens: The tokens since the last piece, where log-probabilities were asked for.
        finish_reason: "stop" (a stop token or string) or "length" (max_tokens or the context is full).
        completion_tokens: Of this choice, once it has finished.
    """

    index: int
    text: str
    tokens: Sequence[SaidToken] = ()
    finish_reason: str | None = None
    completion_tokens: int = 0


@dataclass(frozen=True)
class Failure:
    """A job that ends without its answer.

    Attributes:
        kind: "timeout", "stopping" or "internal".
        message: For the client.
    """

    kind: str
    message: str


Event = Piece | Failure


@dataclass(eq=False)
class Job:
    """One prompt to be answered by one adapter.

    Attributes:
        prompt: Token ids, none empty.
        adapter: Its name on the model; None is the base model.
        stop_token_ids: Any of these ends an answer and is no part of it.
        max_tokens: The longest answer.
        deadline: When it is given up, as `time.monotonic()`.
        emit: Takes each event, in the engine's thread.
        n: Answers to the prompt.
        first_index: Index of the first of them.
        temperature: 0 is greedy.
        top_p: In (0, 1].
        seed: Of the draws; None takes any.
        stop: Strings that end an answer.
        top_logprobs: So many of the likeliest tokens are told; None tells no log-probabilities at all.
        cancelled: Set by anyone; the engine then drops the job.
        failed: Set by the engine.
        arrived: As `time.monotonic()`.
        began: When it left the queue.
    """

    prompt: Sequence[int]
    adapter: str | None
    stop_token_ids: frozenset[int]
    max_tokens: int
    deadline: float
    emit: Callable[[Event], None]
    n: int = 1
    first_index: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int | None = None
    cancelled: bool = False
    failed: bool = False
    arrived: float = field(default_factory=time.monotonic)
    began: float = 0.0

    @property
    def columns(self) -> int:
        """The most tokens that a row of it comes to."""
        return len(self.prompt) + self.max_tokens

    @property
    def is_wanted(self) -> bool:
        """Whether someone still waits for it."""
        return not self.cancelled and not self.failed

    @property
    def too_late(self) -> Failure:
        """How it ends when its time is over."""
        return Failure("timeout", f"no answer was finished within {self.deadline - self.arrived:.0f} s")

    def fail(self, failure: Failure) -> None:
        """Tell, once, that there will be no answer."""
        if self.is_wanted:
            self.failed = True
            self.emit(failure)

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list["Row"]:
        """Its answers, not yet begun."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return [Row(self, i, tokenizer, seed + i) for i in range(self.n)]


class Row:
    """One answer being written."""

    def __init__(self, job: Job, index: int, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.job, self.index = job, job.first_index + index
        self.sampling = Sampling(job.temperature, job.top_p, torch.Generator().manual_seed(seed % 2**63))
        self.text = TextStream(tokenizer, job.stop)
        self.count = 0
        self.finished = False
        self._unsaid: list[SaidToken] = []

    def take(self, token: int, logprobs: TokenLogprob | None) -> None:
        """One more token: says what can be said, and ends where it ends."""
        stops = token in self.job.stop_token_ids
        self.count += 1
        said = ""
        if not stops:
            if logprobs is not None:
                self._unsaid.append(SaidToken(token, self.text.length, logprobs))
            said = self.text.push(token)
        if stops or self.text.stopped:
            self._say(said + self.text.finish(), "stop")
        elif self.count == self.job.max_tokens:
            said += self.text.finish()
            self._say(said, "stop" if self.text.stopped else "length")
        elif said:
            self._say(said, None)

    def _say(self, text: str, reason: str | None) -> None:
        self.finished = reason is not None
        # tokens of a stop string are no part of the answer
        tokens = [token for token in self._unsaid if not self.text.stopped or token.offset < self.text.length]
        self._unsaid = []
        self.job.emit(Piece(self.index, text, tokens, reason, self.count if self.finished else 0))
