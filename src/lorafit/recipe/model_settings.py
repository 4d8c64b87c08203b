"""The `model` section of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lorafit.recipe.kinds import Dtype, Place, Settings


class ModelSettings(Settings):
    """The base model."""

    name: Place = Field(
        min_length=1,
        description="The base model: a hub id, a directory, a GGUF file, or demo:gemma-3-270m (in a package).",
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of a hub model; null is its main branch. Pin it to repeat a run later.",
    )
    dtype: Dtype = Field(
        default="auto",
        description="Type of the frozen weights: bf16, fp32 or fp16 (no loss scaling, small gradients vanish); auto is "
        "bf16 where the processor or GPU multiplies it fast, else fp32. The adapter and the optimizer are always fp32.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="auto (a GPU where there is one), cpu, cuda or mps; CUDA_VISIBLE_DEVICES chooses the GPU.",
    )
    quantize: Literal["auto", "none", "nf4", "int8"] = Field(
        default="auto",
        description="How the frozen linear layers are held: none (in dtype), int8, or nf4 (4 bits, QLoRA: an eighth of "
        "fp32; products are made in dtype). auto is none where that fits into memory, else the least that does. int8 "
        "and nf4 need bitsandbytes: pip install 'lorafit[quant]'.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model's repository carries. Off: it is someone else's program. Only a "
        "line here, or --set model.trust_remote_code=true, turns it on; each start says that it is.",
    )
    allow_pickle: bool = Field(
        default=False,
        description="Also read weights that come as a pickle (pytorch_model.bin), which can run code when it is read. "
        "Off: safetensors only.",
    )

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of `load_model`; an auto that no plan has settled quantizes nothing."""
        quantize = "none" if self.quantize == "auto" else self.quantize
        kept = self.model_dump(include={"dtype", "device", "trust_remote_code", "allow_pickle"})
        return {**kept, "quantize": quantize}
