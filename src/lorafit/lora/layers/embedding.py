"""`nn.Embedding`: weight (vocab, dim). A and B change places: A is looked up, so it starts at zero."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from lorafit.errors import AdapterError
from lorafit.lora.graft import Graft
from lorafit.lora.layers.base import LoraLayer


class Layer(LoraLayer):
    """A: (r, vocab), B: (dim, r); dropout does not apply to token ids."""

    KEY_A = "lora_embedding_A"
    KEY_B = "lora_embedding_B"

    @staticmethod
    def matches(module: nn.Module) -> bool:
        """`nn.Embedding`, and subclasses that only scale their output by `embed_scale` (Gemma 3, Bart)."""
        if not isinstance(module, nn.Embedding):
            return False
        cls = module._grafted_onto if isinstance(module, Graft) else type(module)
        return cls.forward is nn.Embedding.forward or hasattr(module, "embed_scale")

    @staticmethod
    def shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of A and B for rank `r`."""
        assert isinstance(module, nn.Embedding)
        return (r, module.num_embeddings), (module.embedding_dim, r)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        """`h = (W0 + scaling * (B A)^T)[x]`, times the layer's own `embed_scale` where it has one."""
        if self.lora_rows is not None:
            return self.forward_by_rows(x, *args, **kwargs)
        result = super(LoraLayer, self).forward(x, *args, **kwargs)
        if self.lora_merged is None:
            for name in self.lora_active:
                update = self.update(x, self.lora_A[name], self.lora_B[name]) * self.lora_scaling[name]
                result = result + update.to(result.dtype)
        return result

    def update(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Token ids `x` (...) -> (..., dim)."""
        looked_up = F.embedding(x, A.T, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)  # type: ignore[arg-type]
        update = looked_up @ B.T
        return update * self.embed_scale if self._scales_output else update  # type: ignore[operator]

    @property
    def _scales_output(self) -> bool:
        return self._grafted_onto.forward is not nn.Embedding.forward

    def weight_update(self, A: Tensor, B: Tensor) -> Tensor:
        """(vocab, dim).

        Raises:
            AdapterError: With `max_norm` every look-up rescales the weight itself, and would so the update.
        """
        if self.max_norm is not None:
            raise AdapterError(
                f"an adapter on an embedding with max_norm={self.max_norm} cannot be merged; keep it apart"
            )
        return (B @ A).T

    def initialize(self, A: Tensor, B: Tensor, how: bool | str | None) -> None:
        """A zero, B normal, as PEFT; both normal for `how=False`."""
        nn.init.normal_(B)
        if how is False:
            nn.init.normal_(A)
        else:
            nn.init.zeros_(A)

    @staticmethod
    def as_matrix(weight: Tensor) -> Tensor:
        """(dim, vocab)."""
        return weight.T
