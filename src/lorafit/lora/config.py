"""`LoraConfig`: what to adapt and how, under PEFT's field names and with their meanings."""

import dataclasses
import difflib
import sys
from collections.abc import KeysView
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from lorafit.errors import ConfigError
from lorafit.patterns import problem_of
from lorafit.untrusted import short


class TaskType(str, Enum):
    """PEFT's names of tasks, for `LoraConfig(task_type=...)`; the plain strings do as well."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


Bias = Literal["none", "all", "lora_only"]

INITIALIZATIONS = (True, False, "gaussian", "loftq")
INITIALIZATION_RULE = "must be True, False, 'gaussian' or 'loftq'"
# In a file: those that leave the base weights alone, so that the adapter loads like any other. PEFT's "loftq" does not
# (it puts other values into the base, at training and again at loading); lorafit's does, and is saved as True.
LOADABLE_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva", None)

_SWITCHES = ("fan_in_fan_out", "use_rslora", "inference_mode", "ensure_weight_tying")


@dataclass
class LoraConfig:
    """Settings of one adapter: `h = W0 x + scaling * B A dropout(x)`, `scaling = lora_alpha / r` (Hu et al. 2021).

    Attributes:
        r: Rank of the update; A is (r, in), B is (out, r).
        lora_alpha: Numerator of the scaling.
        lora_dropout: Probability in [0, 1) that an input of A is dropped while training.
        target_modules: Modules to adapt: a list of name suffixes, a regular expression over the whole name,
            `"all-linear"` (every linear layer but the output head), or None: PEFT's choice for the architecture.
        exclude_modules: Modules to leave alone: a list of suffixes or a regular expression.
        bias: Which biases train: none, those of the adapted modules (`lora_only`) or all.
        modules_to_save: Ends of the names of modules that train whole and are saved with the adapter (a new head, ...);
            as with PEFT "norm" takes every "input_layernorm" along, and "model.norm" does not.
        use_rslora: Scale by `lora_alpha / sqrt(r)` (Kalajdzievski 2023).
        rank_pattern: Rank per module: {regular expression at the end of the name: r}.
        alpha_pattern: Alpha per module, in the same way.
        layers_to_transform: Indices of the layers to adapt; None means all. Only with a list of targets.
        layers_pattern: Name of the list that holds the layers, where it cannot be guessed ("layers", "h").
        init_lora_weights: True: A Kaiming-uniform, B zero; "gaussian": A normal with deviation 1/r, B zero;
            False: both random, so that the adapter is not the identity at first (for tests); "loftq": over a quantized
            base `scaling * B A` starts at what quantization took from the weight (Li et al. 2023).
        task_type: PEFT's name of the task ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", ...); the classification types
            add the freshly initialized head to `modules_to_save`.
        fan_in_fan_out: Accepted for PEFT's sake: the layer itself knows how its weight is laid out.
        base_model_name_or_path: The base model the adapter belongs to; filled in at `attach`.
        revision: The revision of the base model.
        inference_mode: PEFT's mark of an adapter that was loaded to be used, not trained.
        ensure_weight_tying: PEFT's request to tie what is saved of two tied modules; lorafit always does.

    Raises:
        ConfigError: One error that lists every impossible value.
    """

    r: int = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: Bias = "none"
    use_rslora: bool = False
    modules_to_save: list[str] | None = None
    init_lora_weights: bool | str | None = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    ensure_weight_tying: bool = False

    def __post_init__(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, (set, tuple, frozenset, KeysView)):
                setattr(self, name, sorted(value, key=str))
        for name in ("rank_pattern", "alpha_pattern"):
            value = {} if getattr(self, name) is None else getattr(self, name)
            setattr(self, name, dict(value) if isinstance(value, dict) else value)
        for name in _SWITCHES:
            setattr(self, name, False if getattr(self, name) is None else getattr(self, name))
        if self.task_type is not None:  # PEFT's TaskType is a string enumeration
            self.task_type = str(getattr(self.task_type, "value", self.task_type))
        problems = list(self._type_problems()) or list(self._problems())
        if problems:
            raise ConfigError("LoraConfig: " + "; ".join(problems))

    def _type_problems(self):
        for name in ("target_modules", "exclude_modules", "layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            if isinstance(value, str) and name == "modules_to_save":
                yield f"modules_to_save={short(value)} must be a list: [{short(value)}]"
            elif not (value is None or isinstance(value, str) or _is_list_of(value, str)):
                yield f"{name}={short(value)} must be a list of names" + " or a string" * (name != "modules_to_save")
            elif isinstance(value, list) and "" in value:
                yield f"{name}={short(value)} must not hold an empty name"
        for name in ("rank_pattern", "alpha_pattern"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not _is_list_of(list(value), str):
                yield f"{name}={short(value)} must map names to numbers"
        layers = self.layers_to_transform
        if layers is not None and not _is_list_of(layers if isinstance(layers, list) else [layers], int):
            yield f"layers_to_transform={short(layers)} must be a whole number or a list of them"
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                yield f"{name}={short(getattr(self, name))} must be True or False"

    def _problems(self):
        ranks = [("r", self.r), *((f"rank_pattern[{short(key)}]", value) for key, value in self.rank_pattern.items())]
        for name, value in ranks:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
                yield f"{name}={short(value)} must be a whole number of at least 1 (usual: 4 to 64)"
        alphas = [("lora_alpha", self.lora_alpha)]
        alphas += [(f"alpha_pattern[{short(key)}]", value) for key, value in self.alpha_pattern.items()]
        for name, value in alphas:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
                yield f"{name}={short(value)} must be a number of at least 0 (usual: r or 2 r)"
        dropout = self.lora_dropout
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            yield f"lora_dropout={short(dropout)} must lie in [0, 1)"
        if self.bias not in ("none", "all", "lora_only"):
            yield f"bias={short(self.bias)} must be 'none', 'all' or 'lora_only'"
        how = self.init_lora_weights
        if not isinstance(how, (bool, str, type(None))) or how not in (*INITIALIZATIONS, *LOADABLE_INITIALIZATIONS):
            yield f"init_lora_weights={short(self.init_lora_weights)} {INITIALIZATION_RULE}"
        if isinstance(self.target_modules, list) and not self.target_modules:
            yield "target_modules=[] adapts nothing; name modules, or use 'all-linear'"
        yield from self._pattern_problems()

    def _pattern_problems(self):
        patterns = [(f"rank_pattern[{short(key)}]", key) for key in self.rank_pattern]
        patterns += [(f"alpha_pattern[{short(key)}]", key) for key in self.alpha_pattern]
        patterns += [(name, value) for name in ("target_modules", "exclude_modules")
                     if isinstance(value := getattr(self, name), str)]  # fmt: skip
        layers = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern or []
        patterns += [(f"layers_pattern {position}", pattern) for position, pattern in enumerate(layers, 1)]
        for name, pattern in patterns:
            if (problem := problem_of(pattern)) is not None:
                yield f"{name}={short(pattern)} is not a regular expression ({problem})"
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            yield "layers_to_transform needs target_modules as a list of names, not a regular expression"
        if self.layers_pattern and self.layers_to_transform is None:
            yield f"layers_pattern={short(self.layers_pattern)} does nothing without layers_to_transform"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, under PEFT's names."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LoraConfig":
        """Build a config from field names and values.

        Raises:
            ConfigError: A name is unknown (with the nearest known one), or a value impossible.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            close = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
            hints = [f"{name!r} (did you mean {close[name][0]!r}?)" if close[name] else repr(name) for name in unknown]
            raise ConfigError("LoraConfig has no field " + ", ".join(hints))
        return cls(**values)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)
