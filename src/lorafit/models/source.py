"""Where transformers shall look for a model's files, and what it says of them in words that help."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lorafit.errors import LorafitError, MissingExtraError, ModelError
from lorafit.models.resolve import ResolvedModel
from lorafit.quiet import quiet_transformers

MOST_WORDS = 2000  # characters of another library's message


def source_of(resolved: ResolvedModel) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where to look."""
    if resolved.kind != "hub":
        return {"local_files_only": True}
    return {"revision": resolved.revision or "main", "local_files_only": not hub_answers()}


def hub_answers() -> bool:
    """Whether the hub may be asked and its name can be looked up; else being offline costs a minute of retries."""
    from huggingface_hub.constants import is_offline_mode

    if is_offline_mode():  # HF_HUB_OFFLINE
        return False
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
    if "https" in getproxies() or "all" in getproxies():
        return True  # the proxy looks names up
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def explained(resolved: ResolvedModel, what: str) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line that says how to go on."""
    import torch
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with contextlib.nullcontext() if resolved.kind == "hub" else quiet_transformers():
            yield
    except (LorafitError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(f"The {what} of {resolved.reference} needs another package: {error}") from error
    except Exception as error:  # on hostile files transformers, tokenizers and safetensors raise kinds of any sort
        chain: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        kinds = tuple(type(cause) for cause in chain)
        if any(issubclass(kind, GatedRepoError) for kind in kinds):
            line = "is gated: accept its terms on its page at the hub, then `hf auth login`"
        elif any(issubclass(kind, RepositoryNotFoundError) for kind in kinds):
            line = "is not at the hub (or is private: `hf auth login`), and there is no such directory here"
        elif any(issubclass(kind, LocalEntryNotFoundError) for kind in kinds):
            from huggingface_hub.constants import is_offline_mode

            why = "HF_HUB_OFFLINE is set: unset it" if is_offline_mode() else "the hub cannot be reached: go online"
            line = (
                f"is not in the hub's cache on this machine, and {why}, give a directory or a GGUF file, or try "
                "demo:gemma-3-270m"
            )
        elif "trust_remote_code" in str(error):
            line = "carries its own Python code; if you trust its authors, set model.trust_remote_code to true"
        elif "safetensors" in str(error):
            line = (
                "has no safetensors weights, and pickled ones can run code: convert it, take a copy that has them, or, "
                "if you trust its authors, set model.allow_pickle to true"
            )
        else:
            text = " ".join(str(error).split()) or type(error).__name__
            line = f"cannot be loaded as a {what}: {text[:MOST_WORDS]}{' ...' if len(text) > MOST_WORDS else ''}"
        raise ModelError(f"{resolved.reference} {line}") from error
