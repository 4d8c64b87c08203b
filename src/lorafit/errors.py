"""lorafit's exceptions: one root, each leaf also a standard exception.

A message names the value, the rule it broke and the fix. Whoever finds several problems collects them and raises once.
"""

from collections.abc import Sequence

SHOWN = 5
"""Places, or names, that an error lists."""


class LorafitError(Exception):
    """Root of every error lorafit raises on purpose; the command line prints it without a traceback."""


class ConfigError(LorafitError, ValueError):
    """A setting has an impossible value, or its name is unknown."""


class DataError(LorafitError, ValueError):
    """The rows cannot be read, recognized or trained on."""


class ModelError(LorafitError, ValueError):
    """A base model or tokenizer cannot be found, checked or loaded."""


class AdapterError(LorafitError, RuntimeError):
    """An adapter operation does not fit the state of the model (unknown name, merged twice, ...)."""


class AdapterFileError(LorafitError, ValueError):
    """An adapter's files do not fit the model, or hold a setting that lorafit cannot reproduce."""


class PlanError(LorafitError, RuntimeError):
    """What training will take cannot be predicted."""


class RunError(LorafitError, RuntimeError):
    """A run directory is missing, incomplete or in use."""


class MissingExtraError(LorafitError, ImportError):
    """An optional dependency is not installed; the message holds the install command."""


def some(names: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
