"""The `lora` section of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lorafit.recipe.kinds import Alpha, Rank, Settings, check_pattern


class LoraSettings(Settings):
    """The adapter, in LoraConfig's names: h = W0 x + (lora_alpha / r) B A x."""

    r: Rank = Field(
        default=16,
        description="Rank of the update. More holds more; above 16 seldom matters as much as the learning rate.",
    )
    lora_alpha: Alpha = Field(
        default=32, description="The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with use_rslora)."
    )
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training."
    )
    target_modules: str | list[str] | None = Field(
        default="all-linear",
        description="Which layers get an adapter: all-linear (every linear layer but the head), a list of name "
        "endings, a regular expression, or null for what PEFT takes for the architecture. Attention alone learns less. "
        "text_to_image: null, and what is taken where nothing is said, is the attention's projections.",
    )
    exclude_modules: str | list[str] | None = Field(
        default=None,
        description="Layers to leave out of target_modules: a list of name endings or a regular expression.",
    )
    bias: Literal["none", "all", "lora_only"] = Field(default="none", description="Which biases train too.")
    modules_to_save: list[str] | None = Field(
        default=None, description="Modules trained and saved whole beside the adapter (endings of their names)."
    )
    use_rslora: bool = Field(
        default=False, description="Scale by lora_alpha / sqrt(r), for high ranks (arXiv 2312.03732)."
    )
    rank_pattern: dict[str, Rank] = Field(
        default_factory=dict, description="Another r for some layers: {name ending or regular expression: r}."
    )
    alpha_pattern: dict[str, Alpha] = Field(
        default_factory=dict,
        description="Another lora_alpha for some layers: {name ending or regular expression: alpha}.",
    )
    layers_to_transform: int | list[int] | None = Field(
        default=None,
        description="Numbers of the blocks that get an adapter; null is all. Needs target_modules as a list.",
    )
    layers_pattern: str | list[str] | None = Field(
        default=None,
        description="Name of the list of blocks (layers, h, ...), where layers_to_transform cannot find it.",
    )
    init_lora_weights: bool | Literal["gaussian", "loftq"] = Field(
        default=True,
        description="true: A random (Kaiming uniform), B zero, so training starts at the base model; gaussian: A "
        "normal; loftq: B A starts at what model.quantize took from the weights (arXiv 2310.08659); false: both "
        "random, for tests.",
    )
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM"] | None = Field(
        default=None,
        description="Written into adapter_config.json for the programs that load the adapter; null follows the task: "
        "CAUSAL_LM, SEQ_2_SEQ_LM, or SEQ_CLS and TOKEN_CLS, which train and save the classifier's head.",
    )

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _names_or_pattern(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("must name at least one module; null is PEFT's choice for the architecture")
        if isinstance(value, str):
            check_pattern(value)
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _patterns(cls, value: dict[str, Any]) -> dict[str, Any]:
        for pattern in value:
            check_pattern(pattern)
        return value

    @model_validator(mode="after")
    def _layers_fit(self) -> LoraSettings:
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError(
                "layers_pattern needs layers_to_transform: name the block numbers, or remove layers_pattern"
            )
        if self.layers_to_transform is not None and not isinstance(self.target_modules, list):
            raise ValueError("layers_to_transform needs target_modules as a list of names, such as [q_proj, v_proj]")
        return self
