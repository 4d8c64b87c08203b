"""What every request passes before and after the API: who asks, how large it is, and a line in the log."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from lorafit.serve.log import ACCESS
from lorafit.serve.metrics import Metrics
from lorafit.serve.schema import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 2 * 2**20  # bytes: half a million tokens
DRAINED = 8 * MAX_BODY  # of a larger one so much is read and thrown away, so that the client hears why
BODY_SECONDS = 30.0
OPEN = {"/", "/health"}
ADMIN = "/v1/adapters"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", ADMIN, "/metrics", "/health")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        hosts: Values of the Host header that are answered; None for any. On a loopback address another one is another
            site's name, pointed here (DNS rebinding).
        api_key: Needed for all but the page and the health check; None for nobody.
        admin_key: Needed to add and remove adapters, and good for all else; None forbids that to everyone.
    """

    hosts: frozenset[str] | None
    api_key: str | None = None
    admin_key: str | None = None

    def check(self, path: str, headers: dict[str, str]) -> None:
        """Let a request pass.

        Raises:
            ApiError: 401 or 403, with what is missing.
        """
        if self.hosts is not None:
            host, origin = headers.get("host", ""), headers.get("origin")
            if host not in self.hosts or (origin is not None and origin.removeprefix("http://") != host):
                raise ApiError(403, "This server is for this machine only.", code="host_not_allowed")
        given = headers.get("authorization", "")
        given = given[7:].strip() if given[:7].lower() == "bearer " else ""
        if path == ADMIN or path.startswith(f"{ADMIN}/"):
            if self.admin_key is None:
                raise ApiError(
                    403, "Adapters cannot be changed: the server was started without --admin-key", code="no_admin_key"
                )
            keys = [self.admin_key]
        else:
            keys = [key for key in (self.api_key, self.admin_key) if key] if self.api_key and path not in OPEN else []
        if keys and not sum(_same(given, key) for key in keys):  # all are compared, whichever is right
            which = "admin key" if keys == [self.admin_key] else "API key"
            raise ApiError(
                401,
                f"Incorrect {which}: give it as Authorization: Bearer KEY",
                code=f"invalid_{which.lower().replace(' ', '_')}",
                headers={"WWW-Authenticate": "Bearer"},
            )


class Guard:
    """Middleware: checks `access`, bounds the body, counts and logs; endpoints add `facts` for the log line.

    Args:
        app: What is guarded.
        access: Who may ask.
        metrics: Counts requests.
        known: Whether a model's name is one of ours (any other is not counted by its name).
    """

    def __init__(self, app: App, access: Access, metrics: Metrics, known: Callable[[str], bool]) -> None:
        self.app, self.access, self.metrics, self.known = app, access, metrics, known

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, facts, request_id = time.perf_counter(), {}, uuid.uuid4().hex
        scope["facts"] = facts
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = {**HEADERS, "X-Request-Id": request_id}
                message["headers"] = [*message.get("headers", ()), *((k.lower().encode(), v.encode()) for k, v in
                                                                     added.items())]  # fmt: skip
            await send(message)

        try:
            headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
            self.access.check(scope["path"], headers)
            await self.app(scope, await _with_body(scope, headers, receive), send_noted)
        except ApiError as error:
            facts.setdefault("reason", error.code)
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_noted)
        except _Left:
            facts["reason"] = "client_left"
        finally:
            self._note(scope, status, facts, time.perf_counter() - start, request_id)

    def _note(self, scope: Message, status: int, facts: dict[str, Any], seconds: float, request_id: str) -> None:
        endpoint = next((path for path in ENDPOINTS if scope["path"].startswith(path)), "other")
        model = facts.get("model", "")
        model = model if self.known(model) else ""
        self.metrics.requests.labels(endpoint, model, str(status)).inc()
        self.metrics.seconds.labels(endpoint).observe(seconds)
        line = {"id": request_id, "method": scope["method"], "path": endpoint, "status": status}
        ACCESS.info("request", extra={"facts": {**line, "seconds": round(seconds, 4), **facts, "model": model}})


class _Left(Exception):
    """The client went away before its request was whole."""


async def _with_body(scope: Message, headers: dict[str, str], receive: Receive) -> Receive:
    """Read the body up to its bound; returns a `receive` that hands it on, and then what comes."""
    body = bytearray()
    size, more = 0, scope["method"] not in ("GET", "HEAD")
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS
    while more:
        try:
            message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} s") from None
        if message["type"] == "http.disconnect":
            raise _Left
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size <= MAX_BODY:
            body += part
        elif size > DRAINED:
            break
    if size > MAX_BODY:
        raise ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="request_too_large")
    if size and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send JSON, with Content-Type: application/json", code="unsupported_media_type")
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": bytes(body), "more_body": False}

    return replay


def _same(given: str, key: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(), key.encode())
