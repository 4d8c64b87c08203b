"""What sections of settings share: their base, kinds of values, and how they may be written."""

import os.path
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from lorafit.patterns import problem_of
from lorafit.untrusted import short


class Settings(BaseModel):
    """One section: no unknown key, no silent conversion ("3" is not 3, true is not 1), no later change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, validate_default=True,
                              hide_input_in_errors=True)  # fmt: skip


def one_or_list(value: Any) -> Any:
    """One string stands for a list of one."""
    return [value] if isinstance(value, str) else value


def dtype_name(value: Any) -> Any:
    """PyTorch's names of the dtypes say the same as the short ones."""
    return (
        {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}.get(value, value)
        if isinstance(value, str)
        else value
    )


def one_word(value: Any) -> Any:
    """text-to-image is text_to_image."""
    return value.replace("-", "_") if isinstance(value, str) else value


def on_or_off(value: Any) -> Any:
    """YAML 1.2 reads on and off as words."""
    return {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value


def check_pattern(pattern: str) -> None:
    """Raise ValueError where `pattern` is no regular expression."""
    if (problem := problem_of(pattern)) is not None:
        raise ValueError(f"must be a regular expression, but {short(pattern)} is not one ({problem})")


def bytes_of(text: str) -> int:
    """The bytes that "8GB", "7.5 GiB" or "800MB" are.

    Raises:
        ValueError: It is none of these.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"must be an amount of memory such as 8GB, 7.5GiB or 800MB, not {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


Place = Annotated[str, AfterValidator(os.path.expanduser)]  # no shell has read a recipe's ~
Places = Annotated[list[Place], BeforeValidator(one_or_list)]
Dtype = Annotated[Literal["auto", "bf16", "fp32", "fp16"], BeforeValidator(dtype_name)]
Rank = Annotated[int, Field(ge=1)]
Alpha = Annotated[int | float, Field(gt=0)]  # a whole number stays whole in adapter_config.json
