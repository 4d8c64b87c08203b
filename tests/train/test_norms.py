import pytest
import torch
from tiny_models import random_rows, tiny_model

from lorafit.train.batches import StepCollator
from lorafit.train.loss import LabelLoss
from lorafit.train.norms import lean_norms, recognize


@pytest.mark.parametrize(("kind", "count"), [("llama", 7), ("qwen3", 13), ("gemma2", 13), ("gemma3", 19), ("gpt2", 0)])
def test_gradients_are_those_of_the_models_own_norms(kind, count):
    model = tiny_model(kind)
    for name, value in model.named_parameters():
        value.requires_grad_(name.endswith(("_proj.weight", "c_attn.weight")))
        if value.ndim == 1:
            value.data += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    loss, (batch,) = LabelLoss(model), StepCollator(10_000, 100)(random_rows(5))["micro_batches"]
    results = []
    for lean in (False, True):
        if lean:
            with lean_norms(model) as changed:
                total = loss(batch).sum()
                total.backward()
            assert changed == count
        else:
            total = loss(batch).sum()
            total.backward()
        gradients = [value.grad.clone() for value in model.parameters() if value.grad is not None]
        model.zero_grad()
        results.append([total.detach(), *gradients])
    for own, mine in zip(*results, strict=True):
        assert (own - mine).norm() <= 1e-5 * own.norm()
    assert not any(hasattr(module, "lean_gain") for module in model.modules())


def test_a_norm_that_does_something_else_or_trains_is_left_alone():
    class OddRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

        def forward(self, x):
            return 3 * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    assert recognize(OddRMSNorm()) is None
    model = tiny_model("llama")
    assert recognize(model.model.norm) is None  # trains
    assert recognize(model.model.norm.requires_grad_(False)) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_weight_is_told_from_one_plus_it(dtype):
    class Gemma(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.full((64,), 150.0, dtype=dtype), requires_grad=False), 1e-6

        def forward(self, x):
            wide = x.float()
            return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight.float())).to(
                x.dtype
            )

    Gemma.__name__ = "GemmaRMSNorm"
    found = recognize(Gemma())
    assert found is not None
    assert torch.equal(found[0].float(), torch.full((64,), 151.0))
