"""What requests may hold: OpenAI's parameters, each either done or refused by name; nothing is ignored in silence."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

MAX_STOPS, MAX_PROMPTS = 16, 64
Text = Annotated[str, Field(min_length=1)]


class ApiError(Exception):
    """An answer in OpenAI's error shape.

    Attributes:
        status: HTTP's.
        param: Which parameter of the request is at fault.
        code: A word for programs.
        headers: Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """`include_usage`: a last piece with the counts. `include_obfuscation`: padding against listeners, not sent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Sampled(BaseModel):
    """Parameters of both kinds of completion."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # these change nothing here, or nothing at the only value that is taken
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
    }

    model: Text
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None

    @model_validator(mode="after")
    def _only_neutral(self) -> "Sampled":
        """Refuse what would change the answer and is not done."""
        for name, neutral in self.NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and not any((value == other and type(value) is not bool) or value is other
                                             for other in neutral):  # fmt: skip
                raise ApiError(
                    400,
                    f"{name}={value!r} is not supported: leave it out"
                    + (f" or give {neutral[0]!r}" if neutral else ""),
                    param=name,
                    code="unsupported_parameter",
                )
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options goes with stream=true only", param="stream_options")
        return self

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; parts of text are joined."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def as_template(self) -> dict[str, str]:
        """As chat templates take it: OpenAI's developer is their system."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Sampled):
    """`POST /v1/chat/completions`."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {
        **Sampled.NEUTRAL,
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "verbosity": ("medium",),
        "web_search_options": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    metadata: dict[str, str] | None = None  # the client's own notes, and what follows its hints to OpenAI's servers
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    service_tier: Any = None
    store: Any = None

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs=true only", param="top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                400,
                f"max_tokens={self.max_tokens}, max_completion_tokens={self.max_completion_tokens}: give one of them",
                param="max_completion_tokens",
            )
        return self


class CompletionRequest(Sampled):
    """`POST /v1/completions`."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {**Sampled.NEUTRAL, "echo": (False,), "suffix": ("",)}

    prompt: Any
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    echo: Any = None
    suffix: Any = None

    @field_validator("prompt")
    @classmethod
    def _one_of_four(cls, value: Any) -> Any:
        """A text, texts, token ids, or lists of token ids."""
        several = value if isinstance(value, list) and value and not isinstance(value[0], int) else [value]
        texts = all(isinstance(one, str) for one in several)
        tokens = all(isinstance(one, list) and one and all(type(i) is int and i >= 0 for i in one) for one in several)
        if not texts and not tokens:
            raise ValueError("must be a text, a list of texts, token ids or a list of lists of token ids, none empty")
        if len(several) > MAX_PROMPTS:
            raise ValueError(f"holds {len(several)} prompts, at most {MAX_PROMPTS} are taken")
        return value

    @model_validator(mode="after")
    def _best(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError(400, f"best_of={self.best_of} is not supported: leave it out", param="best_of",
                           code="unsupported_parameter")  # fmt: skip
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One or several."""
        value = self.prompt
        return value if isinstance(value, list) and not isinstance(value[0], int) else [value]


class AdapterRequest(BaseModel):
    """`POST /v1/adapters`: a run, or a folder with an adapter, of the server's machine."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Text
    path: Text


Parsed = TypeVar("Parsed", bound=BaseModel)


def parsed(kind: type[Parsed], body: bytes) -> Parsed:
    """A request's JSON.

    Raises:
        ApiError: Not JSON, or the first parameter that is unknown, missing or impossible.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        raise ApiError(400, f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    param = _param(first["loc"])
    if first["type"] == "extra_forbidden":
        message, code = f"Unrecognized request argument supplied: {param}", "unknown_parameter"
    elif first["type"] == "missing":
        message, code = f"you must provide {param}", "missing_required_parameter"
    else:
        message, code = f"{param}: {first['msg']}", "invalid_value"
    raise ApiError(400, message, param=param, code=code)


def _param(place: tuple[int | str, ...]) -> str | None:
    """`messages[0].content`; which of several kinds pydantic tried is left out."""
    path = str(place[0]) if place else ""
    for part in place[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "bool"):
            path += f".{part}"
        else:
            break
    return path or None
