"""OpenAI's API: models, chat and text completions; adapters added and removed; health, metrics and the chat page."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

import lorafit
from lorafit.errors import ConfigError, DataError, LorafitError
from lorafit.models import context_length
from lorafit.serve.answers import ChatShape, CompletionShape
from lorafit.serve.asking import Asking, Stream, not_found
from lorafit.serve.engine import Engine, Limits
from lorafit.serve.guard import Access, Guard
from lorafit.serve.job import Job
from lorafit.serve.metrics import Metrics
from lorafit.serve.models import Models, NameTaken, NameUnknown, Served, described
from lorafit.serve.page import page
from lorafit.serve.schema import AdapterRequest, ApiError, ChatRequest, CompletionRequest, Sampled, parsed

COMPLETION_TOKENS = 16  # OpenAI's default for text completions


@dataclass(frozen=True)
class Settings:
    """How requests are treated.

    Attributes:
        seconds: The most that a request may take, waiting included.
        max_tokens: The longest answer of a chat that does not say.
        limits: Of the engine.
    """

    seconds: float
    max_tokens: int
    limits: Limits


class Service:
    """The models, their engine, and what requests need of both.

    Args:
        models: Loaded.
        settings: Bounds.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = Metrics(
            lambda: self.engine.running, lambda: self.engine.waiting, lambda: len(self.models.list()) - 1
        )
        # a tokenizer of its own for each thread: they keep state
        self.engine = Engine(models.model, copy.deepcopy(models.tokenizer), settings.limits, self.metrics.step)
        self.context = context_length(models.model)
        self.vocabulary = models.model.config.get_text_config().vocab_size
        self._encoder = ThreadPoolExecutor(1, "lorafit-encoder")

    def find(self, name: str, facts: dict[str, Any]) -> Served:
        """The model of that name.

        Raises:
            ApiError: 404.
        """
        facts["model"] = name[:128]
        served = self.models.find(name)
        if served is None:
            raise not_found(name)
        return served

    async def chat_prompt(self, served: Served, body: ChatRequest) -> list[int]:
        """Token ids of a conversation."""
        messages = [message.as_template for message in body.messages]
        try:
            return await self._encode(served.template.prompt_ids, messages)
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from None

    async def text_prompts(self, body: CompletionRequest) -> list[list[int]]:
        """Token ids of each prompt."""
        prompts = []
        for one in body.prompts:
            ids = one if isinstance(one, list) else await self._encode(self._text_ids, one)
            if not ids or max(ids) >= self.vocabulary:
                what = f"holds a token id beyond {self.vocabulary - 1}" if ids else "is empty"
                raise ApiError(400, f"prompt {what}", param="prompt")
            prompts.append(ids)
        return prompts

    def jobs(
        self, asking: Asking, served: Served, body: Sampled, prompts: Sequence[list[int]], max_tokens: int | None,
        default: int, top_logprobs: int | None, param: str,
    ) -> list[Job]:  # fmt: skip
        """A job for each prompt.

        Raises:
            ApiError: One does not fit into the model's context or into this server.
        """
        limits, n = self.settings.limits, body.n or 1
        if n > limits.batch_rows:
            raise ApiError(400, f"n={n}: this server writes {limits.batch_rows} answers at a time", param="n")
        jobs = []
        for number, prompt in enumerate(prompts):
            room = (limits.cache_tokens // n if self.context is None else self.context) - len(prompt)
            if room < (max_tokens or 1):
                whole = len(prompt) + room
                raise ApiError(
                    400,
                    f"This model's context is {whole} tokens; the prompt has {len(prompt)} and the answer "
                    f"{max_tokens or 1} at most: shorten one of them",
                    param=param if room < 1 else "max_tokens",
                    code="context_length_exceeded",
                )
            length = max_tokens or min(default, room)
            if n * (len(prompt) + length) > limits.cache_tokens:
                raise ApiError(
                    400,
                    f"{n} x {len(prompt) + length} tokens of prompt and answer; this server has memory for "
                    f"{limits.cache_tokens}: ask for fewer",
                    param="max_tokens",
                    code="context_length_exceeded",
                )
            jobs.append(
                Job(
                    prompt, served.adapter, frozenset(served.template.stop_token_ids), length,
                    time.monotonic() + self.settings.seconds, asking.emit,
                    n=n, first_index=number * n,
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    seed=None if body.seed is None else body.seed + number * n,
                    stop=body.stops, top_logprobs=top_logprobs,
                )
            )  # fmt: skip
        return jobs

    async def add(self, body: AdapterRequest) -> Served:
        """Load an adapter between two steps."""

        def load() -> Served:
            self.engine.adapters.clear()
            return self.models.add(body.name, Path(body.path))

        return await asyncio.wrap_future(self.engine.call(load))

    async def remove(self, name: str) -> None:
        """Take an adapter off; answers that it is writing are finished."""
        served = await asyncio.wrap_future(self.engine.call(lambda: self.models.withdraw(name)))
        assert served.adapter is not None
        self.engine.retire(served.adapter, lambda: self.models.delete(served))

    def _text_ids(self, text: str) -> list[int]:
        return self.models.tokenizer(text)["input_ids"]  # pyright: ignore[reportReturnType]

    async def _encode(self, function, argument) -> list[int]:
        return await asyncio.get_running_loop().run_in_executor(self._encoder, function, argument)


def create_app(service: Service, access: Access) -> FastAPI:
    """The whole server as an ASGI application; it starts the engine and stops it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await asyncio.to_thread(service.engine.stop)

    app = FastAPI(title="lorafit", version=lorafit.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  openapi_url=None)  # fmt: skip
    app.add_middleware(
        Guard,  # pyright: ignore[reportArgumentType]  # starlette's own type of the scope
        access=access,
        metrics=service.metrics,
        known=lambda name: service.models.find(name) is not None,
    )
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_completions(app, service)
    _add_models(app, service)
    _add_operations(app, service, needs_key=access.api_key is not None)
    return app


def _add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body, facts = parsed(ChatRequest, await request.body()), request.scope["facts"]
        served = service.find(body.model, facts)
        asking = Asking(facts, service.metrics, served.name)
        prompt = await service.chat_prompt(served, body)
        top = (body.top_logprobs or 0) if body.logprobs else None
        longest = body.max_completion_tokens or body.max_tokens
        asking.jobs = service.jobs(
            asking, served, body, [prompt], longest, service.settings.max_tokens, top, "messages"
        )
        shape = ChatShape(service.models.tokenizer, served.name, bool(body.logprobs))
        return await answer(request, body, asking, shape)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        body, facts = parsed(CompletionRequest, await request.body()), request.scope["facts"]
        served = service.find(body.model, facts)
        asking = Asking(facts, service.metrics, served.name)
        prompts = await service.text_prompts(body)
        asking.jobs = service.jobs(
            asking, served, body, prompts, body.max_tokens, COMPLETION_TOKENS, body.logprobs, "prompt"
        )
        shape = CompletionShape(service.models.tokenizer, served.name, body.logprobs is not None)
        return await answer(request, body, asking, shape)

    async def answer(request: Request, body: Sampled, asking: Asking, shape) -> Response:
        asking.submit(service.engine)
        if body.stream:
            options = body.stream_options
            return Stream(asking, shape, bool(options and options.include_usage))
        return await asking.whole(request, shape)


def _add_models(app: FastAPI, service: Service) -> None:
    models = service.models

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        data = [described(served, models.base_name) for served in models.list()]
        return JSONResponse({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> JSONResponse:
        served = models.find(name)
        if served is None:
            raise not_found(name)
        return JSONResponse(described(served, models.base_name))

    @app.post("/v1/adapters")
    async def add_adapter(request: Request) -> JSONResponse:
        body = parsed(AdapterRequest, await request.body())
        try:
            served = await service.add(body)
        except ConfigError as error:
            raise ApiError(409 if isinstance(error, NameTaken) else 400, str(error), param="name") from None
        except LorafitError as error:
            raise ApiError(400, str(error), param="path") from None
        return JSONResponse(described(served, models.base_name), 201)

    @app.delete("/v1/adapters/{name:path}")
    async def remove_adapter(name: str) -> JSONResponse:
        try:
            await service.remove(name)
        except ConfigError as error:
            raise ApiError(404 if isinstance(error, NameUnknown) else 400, str(error), param="name") from None
        return JSONResponse({"id": name, "object": "model", "deleted": True})


def _add_operations(app: FastAPI, service: Service, needs_key: bool) -> None:
    engine = service.engine

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "stopping" if engine.is_stopping else "ok" if engine.is_alive else "failed"
        return JSONResponse(
            {"status": state, "running": engine.running, "waiting": engine.waiting}, 200 if state == "ok" else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def chat_page() -> HTMLResponse:
        html, policy = page(needs_key)
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    request.scope["facts"].setdefault("reason", error.code)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]}"
    message = {404: f"There is no {where}", 405: f"{where} is not allowed"}.get(error.status_code, error.detail)
    return await _api_error(request, ApiError(error.status_code, message))
