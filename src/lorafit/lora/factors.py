"""The update of one module as two matrices, apart from any model."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorafit.lora.low_rank import norm_of_product

if TYPE_CHECKING:
    from lorafit.lora.layers import LoraLayer


@dataclass(frozen=True)
class Factors:
    """`scaling * B A` of one module, in the shapes of PEFT's files.

    Attributes:
        A: (r, inputs, ...).
        B: (outputs, r / groups, ...); groups are those of a grouped convolution, else 1.
        scaling: the factor on the product.
        embedding: whether the module is an embedding, whose A is looked up.
    """

    A: Tensor
    B: Tensor
    scaling: float = 1.0
    embedding: bool = False

    @classmethod
    def of(cls, layer: "LoraLayer", name: str) -> "Factors":
        """Those of one adapter of a layer."""
        A, B = layer.lora_A[name].detach(), layer.lora_B[name].detach()
        return cls(A, B, layer.lora_scaling[name], layer.KEY_A == "lora_embedding_A")

    @property
    def r(self) -> int:
        """The rank."""
        return self.A.shape[0]

    @property
    def groups(self) -> int:
        """How many groups of channels have a product of their own."""
        return self.A.shape[0] // self.B.shape[1]

    @property
    def outer(self) -> tuple[torch.Size, torch.Size]:
        """What is the same for every rank: the shapes of A and B without it."""
        return self.A.shape[1:], torch.Size([self.B.shape[0], *self.B.shape[2:]])

    def products(self) -> list[tuple[Tensor, Tensor]]:
        """`scaling * B` (outputs, r) and A (r, inputs), whose products hold each entry once; a pair for each group."""
        B = self.B.flatten(1) * self.scaling
        return list(zip(B.chunk(self.groups), self.A.flatten(1).chunk(self.groups), strict=True))

    @property
    def norm(self) -> float:
        """The Frobenius norm of `scaling * B A`, in float64."""
        return math.hypot(*(norm_of_product(B.double(), A.double()) for B, A in self.products()))

    def to(self, dtype: torch.dtype) -> "Factors":
        """The same numbers in another dtype."""
        return Factors(self.A.to(dtype), self.B.to(dtype), self.scaling, self.embedding)

    def padded(self, r: int) -> "Factors":
        """The same update with rank `r`, a multiple of the groups: zeros are added to A and to B."""
        missing = (r - self.r) // self.groups
        if not missing:
            return self
        A = self.A.unflatten(0, (self.groups, -1))
        A = torch.cat([A, A.new_zeros(self.groups, missing, *A.shape[2:])], 1).flatten(0, 1)
        B = torch.cat([self.B, self.B.new_zeros(self.B.shape[0], missing, *self.B.shape[2:])], 1)
        return Factors(A, B, self.scaling, self.embedding)
