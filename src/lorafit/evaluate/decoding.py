"""A model's layers as they are fast in a step of generation: a row for each answer."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from lorafit.kernels.frozen_linear import few_rows, frozen_linear, is_faster_from_the_left
from lorafit.lora.graft import Graft, graft, ungraft


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Within the block answers are written; adapters are neither attached nor removed there."""
    with few_rows(), contiguous_head(model), ExitStack() as stack:
        for module in list(model.modules()):
            if type(module) is not nn.Linear or "forward" in vars(module):
                continue
            if type(module.weight) is nn.Parameter and is_faster_from_the_left(module.weight):
                stack.callback(ungraft, graft(module, FewRows))
        yield


class FewRows(Graft, nn.Module):
    """A linear layer without an adapter; one with an adapter knows of few rows itself."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """`x W' + b`, (..., in) to (..., out)."""
        return frozen_linear(input, self.weight, self.bias)


@contextmanager
def contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """The head gets the last hidden states of the prompts in memory of their own, not as a view of all of them.

    In bfloat16 on the CPU torch 2.13 multiplies such a view by a copy of the weight for every prompt: 64 prompts and
    Gemma's vocabulary took 22 GB and a minute where 0.05 s do.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda module, arguments: (arguments[0].contiguous(), *arguments[1:]))
    try:
        yield
    finally:
        hook.remove()
