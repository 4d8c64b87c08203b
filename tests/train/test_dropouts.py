import torch
from tiny_models import tiny_model
from torch import nn

from lorafit.train.dropouts import LeanDropout, lean_dropouts


def test_the_models_dropouts_are_lean_within_the_block_only():
    model = tiny_model("gpt2")
    count = sum(type(module) is nn.Dropout for module in model.modules())
    with lean_dropouts(model) as changed:
        assert changed == count > 0
        assert sum(isinstance(module, LeanDropout) for module in model.modules()) == count
    assert not any(isinstance(module, LeanDropout) for module in model.modules())


def test_it_drops_in_training_only_and_repeats_with_the_seed():
    layer, x = nn.Dropout(0.5), torch.ones(100, 100)
    with lean_dropouts(layer):
        assert torch.equal(layer.eval()(x), x)
        layer.train()
        torch.manual_seed(0)
        first, second = layer(x), layer(x)
        torch.manual_seed(0)
        again = layer(x)
        assert torch.equal(first, again) and not torch.equal(first, second)
        assert abs(float((first == 0).float().mean()) - 0.5) < 0.03
        layer.p = 1.0
        assert not layer(x).any()
