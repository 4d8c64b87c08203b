"""What prepared rows depend on, as one SHA-256."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorafit.data.template import Template
from lorafit.models.cache import sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

PACKAGES = ("lorafit", "transformers", "tokenizers", "jinja2", "datasets", "pyarrow")


def rows_key(
    files: Sequence[Path], validation_files: Sequence[Path], template: Template, settings: Mapping[str, Any]
) -> str | None:
    """SHA-256, in hexadecimal, of all that rows, tokens and summary depend on.

    That is the bytes of the files (not where they lie), the settings, the tokenizer's whole state, the template's text,
    the code of this package and the versions of those it calls. A template that asks for the time adds the day.

    Args:
        files: Of the training rows.
        validation_files: Of the rows to hold out.
        template: With its tokenizer.
        settings: The other arguments of `prepare`, as JSON types.

    Returns:
        The key; None for a tokenizer in Python, whose state cannot be written down.
    """
    if not template.tokenizer.is_fast:
        return None
    parts = {
        "files": [[_content(file) for file in side] for side in (files, validation_files)],
        "settings": dict(settings),
        "tokenizer": _state(template.tokenizer),
        "template": template.source,
        "day": date.today().isoformat() if "strftime_now" in template.source else None,
        "code": _code(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(file: Path) -> tuple[str, str]:
    return file.suffix.lower(), sha256(file)  # the suffix chooses the reader


def _state(tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    """The Rust side with vocabulary, merges and added tokens, and what the Python side adds to it."""
    backend = cast("Tokenizer", tokenizer.backend_tokenizer)  # pyright: ignore[reportAttributeAccessIssue]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    serialized = hashlib.sha256(backend.to_str().encode()).hexdigest()
    return [type(tokenizer).__name__, serialized, special, tokenizer.split_special_tokens]


@cache
def _code() -> str:
    """Of this package's source: no number to remember to raise."""
    return sha256(*sorted(Path(__file__).parent.rglob("*.py")))
