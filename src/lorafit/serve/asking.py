"""One request on its way through the engine: its jobs, what they tell, and the client's leaving."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from lorafit.serve.answers import Choice, Shape
from lorafit.serve.engine import Busy, Engine, Gone, Stopping
from lorafit.serve.job import Event, Failure, Job, Piece
from lorafit.serve.metrics import Metrics
from lorafit.serve.schema import ApiError

STATUS = {"timeout": 504, "stopping": 503, "internal": 500}


class Asking:
    """The jobs of one request and the queue of their events; to be made on the event loop."""

    def __init__(self, facts: dict[str, Any], metrics: Metrics, model: str) -> None:
        self.jobs: list[Job] = []
        self.facts, self.metrics, self.model = facts, metrics, model
        self._loop, self._events = asyncio.get_running_loop(), asyncio.Queue[Event]()
        self._start = time.perf_counter()
        self._told = self._counted = 0

    def emit(self, event: Event) -> None:
        """For `Job.emit`, from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def submit(self, engine: Engine) -> None:
        """Queue the jobs.

        Raises:
            ApiError: 429 with Retry-After, 404 or 503.
        """
        prompt_tokens = sum(len(job.prompt) for job in self.jobs)
        self.facts |= {"prompt_tokens": prompt_tokens, "choices": self.count}
        try:
            engine.submit(self.jobs)
        except Busy as busy:
            raise ApiError(429, f"Too many requests: {busy}", code="queue_full",
                           headers={"Retry-After": str(busy.retry_after)}) from None  # fmt: skip
        except Gone:
            raise not_found(self.model) from None
        except Stopping:
            raise ApiError(503, "The server is being stopped", code="stopping", headers={"Retry-After": "10"}) from None
        self.metrics.prompt_tokens.labels(self.model).inc(prompt_tokens)

    @property
    def count(self) -> int:
        """Choices asked for."""
        return sum(job.n for job in self.jobs)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        prompt = sum(len(job.prompt) for job in self.jobs)
        return {"prompt_tokens": prompt, "completion_tokens": self._counted, "total_tokens": prompt + self._counted}

    async def pieces(self) -> AsyncIterator[Piece]:
        """What is said, until every choice has finished.

        Raises:
            ApiError: A job failed.
        """
        while self._told < self.count:
            event = await self._next()
            if isinstance(event, Failure):
                self.cancel()
                headers = {"Retry-After": "10"} if event.kind == "stopping" else None
                raise ApiError(STATUS[event.kind], event.message, code=event.kind, headers=headers)
            if "first_text_seconds" not in self.facts:
                seconds = time.perf_counter() - self._start
                self.facts["first_text_seconds"] = round(seconds, 4)
                self.metrics.first_token.observe(seconds)
            if event.finish_reason is not None:
                self._told += 1
                self._counted += event.completion_tokens
            yield event
        self.facts["completion_tokens"] = self._counted
        self.metrics.completion_tokens.labels(self.model).inc(self._counted)

    async def _next(self) -> Event:
        """The next event; time that is over ends a request also while the engine is busy with one long step."""
        if not self._events.empty():
            return self._events.get_nowait()
        job = self.jobs[0]  # all have the same deadline
        try:
            return await asyncio.wait_for(self._events.get(), job.deadline - time.monotonic())
        except asyncio.TimeoutError:
            return job.too_late

    def cancel(self) -> None:
        """Nobody waits any more."""
        for job in self.jobs:
            job.cancelled = True

    async def whole(self, request: Request, shape: Shape) -> Response:
        """All at once; the jobs are cancelled where the client leaves."""
        choices = [Choice() for _ in range(self.count)]

        async def collect() -> None:
            async for piece in self.pieces():
                choices[piece.index].add(piece)

        if not await unless_left(collect(), request.receive):
            self.cancel()
            self.facts["reason"] = "client_left"
            return Response(status_code=499)  # nobody reads it; the log shows it
        return JSONResponse(shape.whole(choices, self.usage))


async def unless_left(work, receive) -> bool:
    """Do `work`, or stop doing it where the client leaves; whether it was done."""
    leaving = asyncio.ensure_future(_left(receive))
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({leaving, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (leaving, working):
            task.cancel()
        await asyncio.gather(leaving, working, return_exceptions=True)


async def _left(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def not_found(model: str) -> Exception:
    """The error of a name that nothing has."""
    return ApiError(404, f"The model {model!r} does not exist: GET /v1/models lists those that do", param="model",
                    code="model_not_found")  # fmt: skip


class Stream(Response):
    """Server-sent events. The status waits for the first one, so that what fails before is an error of its own.

    Args:
        asking: Submitted.
        shape: Of the events.
        include_usage: Whether a last event has the counts.
    """

    def __init__(self, asking: Asking, shape: Shape, include_usage: bool) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.asking, self.shape, self.include_usage = asking, shape, include_usage
        self._begun = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Send all, or stop where the client leaves."""
        if not await unless_left(self._send_all(scope, receive, send), receive):
            self.asking.cancel()
            self.asking.facts["reason"] = "client_left"

    async def _send_all(self, scope, receive, send) -> None:
        usage = {"usage": None} if self.include_usage else {}
        try:
            async for piece in self.asking.pieces():
                opening = [] if self._begun else self.shape.opening(self.asking.count)
                await self._send(send, [{**event, **usage} for event in (*opening, self.shape.piece(piece))])
            last: Sequence[Any] = [self.shape.usage(self.asking.usage)] if self.include_usage else []
            await self._send(send, [*last, "[DONE]"])
        except ApiError as error:
            self.asking.facts["reason"] = error.code
            if not self._begun:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
                return
            await self._send(send, [error.body])  # OpenAI's client raises it
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send, events: Sequence[Any]) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        text = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
