"""Secrets stay out of what lorafit writes and prints: run.json, recipe.yaml, reports, logs and errors.

A secret is the value of an environment variable whose name says so (HF_TOKEN, WANDB_API_KEY, ...), a text of a known
form (a token of the hub, of GitHub, ...), or what follows such a name on a command line.
"""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

HIDDEN = "***"
SHORTEST = 8
"""Characters of a variable's value; shorter ones would hide ordinary words."""
_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|(API|ACCESS|SECRET|PRIVATE|AUTH)_?KEY)$", re.IGNORECASE
)
_FORMS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}"  # Hugging Face
    r"|sk-[A-Za-z0-9_-]{20,}"  # OpenAI, Anthropic
    r"|gh[opsur]_[A-Za-z0-9]{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}"  # Amazon
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"  # JSON web tokens
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")  # https://name:password@host
_NAMED = re.compile(
    r"(?i)(\b[\w.-]*(?:(?:hf|hub|api|auth|access|bearer)[_-]?token|(?:api|access|secret|private|wandb)[_-]?key|password|"
    r"passwd|secret)['\"]?\s*[=:]\s*['\"]?)([^\s'\",}]+)"
)


def redacted(text: str) -> str:
    """A text with every secret in it hidden."""
    for _, value in _in_environment():
        text = text.replace(value, HIDDEN)
    text = _FORMS.sub(HIDDEN, text)
    text = _IN_ADDRESS.sub(HIDDEN, text)
    return _NAMED.sub(rf"\1{HIDDEN}", text)


def redacted_values(value: Any) -> Any:
    """JSON values with every secret in their texts hidden."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return value


def secret_in(value: Any) -> str | None:
    """What kind of secret a setting's value holds, in words; None where it holds none."""
    if isinstance(value, dict):
        return next((kind for part in (*value, *value.values()) if (kind := secret_in(part))), None)
    if isinstance(value, list):
        return next((kind for part in value if (kind := secret_in(part))), None)
    if not isinstance(value, str):
        return None
    for name, secret in _in_environment():
        if secret in value:
            return f"the value of the environment variable {name}"
    if _FORMS.search(value):
        return "what looks like an access token"
    return "a password in an address" if _IN_ADDRESS.search(value) else None


def _in_environment() -> Iterator[tuple[str, str]]:
    """The secrets among the environment's variables; a path to a file is none."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _NAME.search(name) and not value.startswith(("/", "~", "./")):
            yield name, value


def guard_output() -> None:
    """Let no log record, warning or traceback of this process show a secret; for programs, not for importers."""
    if getattr(logging.getLogRecordFactory(), "hides_secrets", False):
        return
    make = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make(*args, **kwargs)
        try:
            text = made.getMessage()
        except (TypeError, ValueError):  # logging itself tells what is wrong with the record
            return made
        if (shown := redacted(text)) != text:
            made.msg, made.args = shown, None
        return made

    record.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
    form = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: redacted(form(*args, **kwargs))
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show_error


def _show_error(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, where))))
