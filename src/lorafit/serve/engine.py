"""One thread that owns the model: requests join between steps, leave when they end, and share each step."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorafit.evaluate.decoding import decoding
from lorafit.lora import AdapterRows
from lorafit.serve.batch import Batch, Forward, Prefill, regrouped
from lorafit.serve.cache import check_attention_only
from lorafit.serve.job import Failure, Job
from lorafit.train.loss import evaluating

Result = TypeVar("Result")
_log = logging.getLogger("lorafit.serve")

FIRST_GUESS_S = 5.0  # of a request's time in the batch, before any has ended


class Busy(Exception):
    """The queue is full.

    Attributes:
        retry_after: Seconds after which it may have room.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Gone(Exception):
    """The adapter was removed meanwhile."""


class Stopping(Exception):
    """The server is being stopped and takes no more."""


@dataclass(frozen=True)
class Limits:
    """What the engine holds at a time.

    Attributes:
        batch_rows: Answers written together.
        queue: Prompts that may wait.
        cache_tokens: Rows times the columns of the longest: memory of keys and values.
        chunk: Columns of prompts that are read between two steps.
    """

    batch_rows: int = 16
    queue: int = 64
    cache_tokens: int = 65_536
    chunk: int = 512


class Engine:
    """Generates for jobs of any adapters, in a thread of its own.

    Args:
        model: A causal language model of plain attention; only the engine's thread may touch it from now on.
        tokenizer: Turns tokens into text.
        limits: Bounds.
        on_step: Told the rows of each step and the seconds that it took.

    Raises:
        ModelError: The model keeps other state than keys and values.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        on_step: Callable[[int, float], None] = lambda rows, seconds: None,
    ) -> None:
        check_attention_only(model)
        self.model, self.tokenizer, self.limits, self.on_step = model, tokenizer, limits, on_step
        self.adapters = AdapterRows(model)
        self.seconds_a_job = FIRST_GUESS_S
        self._forward = Forward(model, self.adapters)
        self._lock = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._tasks: deque[tuple[Callable[[], Any], Future]] = deque()
        self._retiring: list[tuple[str, Callable[[], None]]] = []
        self._gone: set[str] = set()
        self._batch, self._prefill = Batch.empty(), None
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name="lorafit-engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def running(self) -> int:
        """Rows being written or read."""
        prefill = self._prefill
        return len(self._batch.rows) + (prefill.row_count if prefill else 0)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no more."""
        return self._stopping

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request, all or none.

        Raises:
            Busy: They do not fit into the queue at present.
            Gone: Their adapter was removed.
            Stopping: The engine takes no more.
        """
        with self._lock:
            if self._stopping:
                raise Stopping
            if any(job.adapter in self._gone for job in jobs):
                raise Gone
            if len(self._waiting) + len(jobs) > self.limits.queue:
                raise Busy(self._retry_after())
            self._waiting.extend(jobs)
            self._lock.notify()

    def call(self, function: Callable[[], Result]) -> "Future[Result]":
        """Run a function between two steps, in the engine's thread; no row's adapter changes before it ends."""
        future: Future[Result] = Future()
        with self._lock:
            if self._ended:
                raise Stopping
            self._tasks.append((function, future))
            self._lock.notify()
        return future

    def retire(self, adapter: str, remove: Callable[[], None]) -> None:
        """Call `remove` in the engine's thread as soon as no job uses the adapter; later ones are refused."""
        self.call(lambda: self._retiring.append((adapter, remove)))

    def drain(self) -> None:
        """Take no more: what waits is told so, what runs is finished."""
        with self._lock:
            self._stopping = True
            waiting, self._waiting = list(self._waiting), deque()
            self._lock.notify()
        for job in waiting:
            job.fail(Failure("stopping", "the server is being stopped; ask again later"))

    def stop(self, seconds: float = 10.0) -> None:
        """End the thread; whatever still runs is told."""
        self.drain()
        with self._lock:
            self._ended = True
            self._lock.notify()
        self._thread.join(seconds)

    def _run(self) -> None:
        with evaluating(self.model):
            while self._wait():
                try:
                    self._do_tasks()
                    with decoding(self.model):
                        self._turn()
                    self._remove_retired()
                except Exception as error:  # whatever it was, nobody may wait for ever, and the next ones are served
                    _log.error("a step failed", exc_info=error)
                    self._fail_all("internal", f"the step failed ({type(error).__name__}); the server's log says more")
        self._fail_all("stopping", "the server was stopped before the answer was finished")
        self._do_tasks()

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._lock:
            while not (self._ended or self._tasks or self._waiting or self._prefill or self._batch.rows):
                self._lock.wait()
            return not self._ended

    def _do_tasks(self) -> None:
        while self._tasks:
            function, future = self._tasks.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:  # the caller's to handle
                future.set_exception(error)

    def _remove_retired(self) -> None:
        for adapter, remove in list(self._retiring):
            with self._lock:
                if any(job.adapter == adapter for job in (*self._jobs(), *self._waiting)):
                    continue
                self._gone.add(adapter)
            self._retiring.remove((adapter, remove))
            self.adapters.clear()
            remove()

    def _jobs(self) -> list[Job]:
        """Those being answered."""
        return [row.job for row in self._batch.rows] + (self._prefill.jobs if self._prefill else [])

    def _turn(self) -> None:
        """One chunk of prompts, one step of all rows."""
        self._give_up_late()
        self._batch = regrouped([self._batch], lambda row: row.job.is_wanted)
        if self._prefill is None:
            self._prefill = self._admit()
        if self._prefill is not None:
            begun = self._prefill.advance(self._forward, self.tokenizer)
            if begun is not None:
                self._regroup([self._batch, begun])
                self._prefill = None
        if self._batch.rows:
            start = time.perf_counter()
            self._batch.step(self._forward)
            self.on_step(len(self._batch.rows), time.perf_counter() - start)
            self._regroup([self._batch])

    def _regroup(self, batches: Sequence[Batch]) -> None:
        now = time.monotonic()
        for row in (row for batch in batches for row in batch.rows if row.finished):
            self.seconds_a_job += 0.1 * (now - row.job.began - self.seconds_a_job)
        self._batch = regrouped(batches, lambda row: not row.finished and row.job.is_wanted)

    def _give_up_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [job for job in (*self._jobs(), *self._waiting) if job.deadline <= now]
        for job in late:
            job.fail(job.too_late)
        with self._lock:
            self._waiting = deque(job for job in self._waiting if job.is_wanted)

    def _admit(self) -> Prefill | None:
        """The next jobs that fit, in the order they came."""
        jobs: list[Job] = []
        rows = len(self._batch.rows)
        columns = max((row.job.columns for row in self._batch.rows), default=0)
        with self._lock:
            while self._waiting:
                job = self._waiting[0]
                wide, longest = max(columns, job.columns), max(len(other.prompt) for other in (*jobs, job))
                too_wide = (rows + job.n) * wide > self.limits.cache_tokens
                padded = bool(jobs) and longest * (len(jobs) + 1) > max(self.limits.chunk * 4, longest)
                if rows + job.n > self.limits.batch_rows or too_wide or padded:
                    break
                rows, columns = rows + job.n, wide
                self._waiting.popleft()
                job.began = time.monotonic()
                jobs.append(job)
        return Prefill(jobs, self.limits.chunk) if jobs else None

    def _retry_after(self) -> int:
        rounds = math.ceil((len(self._waiting) + 1) / self.limits.batch_rows)
        return min(max(math.ceil(rounds * self.seconds_a_job), 1), 60)

    def _fail_all(self, kind: str, message: str) -> None:
        jobs = self._jobs()
        self._batch, self._prefill = Batch.empty(), None
        with self._lock:
            waiting, self._waiting = (list(self._waiting), deque()) if self._ended else ([], self._waiting)
        for job in (*jobs, *waiting):
            job.fail(Failure(kind, message))
