import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lorafit.kernels.encoder_layer import EncoderLayer, Norm, Projection, encoder_layer, encoder_layer_reference
from lorafit.kernels.lora_linear import Adapter

D, WIDE, HEADS = 12, 20, 3
NAMES = ["query", "key", "value", "output", "up", "down"]


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).mul(0.5).to(dtype)


def layer_of(
    ranks, *, dtype=torch.float64, master=None, activation=F.gelu, dropout=0.0, adapter_dropout=0.0, bias=True
):
    """A layer whose projections have an adapter for each of their ranks."""
    torch.manual_seed(0)
    projections = {}
    for name in NAMES:
        outputs, inputs = {"up": (WIDE, D), "down": (D, WIDE)}.get(name, (D, D))
        adapters = [
            Adapter(
                drawn(r, inputs, dtype=master or dtype).requires_grad_(),
                drawn(outputs, r, dtype=master or dtype).requires_grad_(),
                0.7,
                adapter_dropout,
            )
            for r in ranks.get(name, ())
        ]
        weight, offset = drawn(outputs, inputs, dtype=dtype), drawn(outputs, dtype=dtype)
        projections[name] = Projection(weight, offset if bias else None, adapters)
    norms = [Norm(drawn(D, dtype=dtype) + 1, drawn(D, dtype=dtype), 1e-5) for _ in range(2)]
    return EncoderLayer(
        **projections,
        middle_norm=norms[0],
        last_norm=norms[1],
        activation=activation,
        heads=HEADS,
        scaling=0.6,
        attention_dropout=dropout,
        output_dropout=dropout,
        down_dropout=dropout,
    )


def matrices_of(layer):
    return [matrix for name in NAMES for a in getattr(layer, name).adapters for matrix in (a.A, a.B)]


def results(function, x, layer, lengths):
    """The output, and the gradients of a function of it, by x and every matrix."""
    wanted = [tensor for tensor in (x, *matrices_of(layer)) if tensor.requires_grad]
    y = function(x, layer, lengths)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), wanted)]


def assert_equal(ours, expected, **bounds):
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **bounds)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    ranks=st.fixed_dictionaries({name: st.lists(st.integers(1, 4), max_size=2) for name in NAMES}),
    needs_x=st.booleans(),
    bias=st.booleans(),
    activation=st.sampled_from([F.gelu, torch.tanh, lambda x: F.gelu(x, approximate="tanh")]),
)
def test_equals_the_reference(lengths, ranks, needs_x, bias, activation):
    if not needs_x and not any(ranks.values()):
        return
    layer = layer_of(ranks, activation=activation, bias=bias)
    x = drawn(1, sum(lengths), D).requires_grad_(needs_x)
    ours, expected = (results(function, x, layer, lengths) for function in (encoder_layer, encoder_layer_reference))
    assert_equal(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_frozen_adapter_still_passes_gradients_on():
    layer = layer_of({"value": [2], "up": [2], "down": [3]})
    for matrix in matrices_of(layer):
        matrix.requires_grad_(False)
    x = drawn(1, 9, D).requires_grad_()
    ours, expected = (results(function, x, layer, [4, 5]) for function in (encoder_layer, encoder_layer_reference))
    assert len(ours) == 2
    assert_equal(ours, expected, rtol=1e-9, atol=1e-9)


def test_layers_follow_each_other():
    layers = [layer_of({"query": [2], "down": [2]}), layer_of({"key": [2], "output": [1], "up": [2]})]
    x = drawn(1, 12, D)

    def both(function):
        y = function(function(x, layers[0], [5, 7]), layers[1], [5, 7])
        matrices = [matrix for layer in layers for matrix in matrices_of(layer)]
        return [y.detach(), *torch.autograd.grad(y.sin().sum(), matrices)]

    assert_equal(both(encoder_layer), both(encoder_layer_reference), rtol=1e-9, atol=1e-9)


def test_with_dropout_the_gradient_is_that_of_what_was_computed():
    """Along a direction, the slope of the outputs for the same random numbers."""
    layer, lengths = layer_of({name: [2] for name in NAMES}, dropout=0.3, adapter_dropout=0.4), [9, 5, 12]
    x = drawn(1, sum(lengths), D).requires_grad_()
    leaves = [x, *matrices_of(layer)]
    directions = [drawn(*leaf.shape) for leaf in leaves]

    def move(by):
        with torch.no_grad():
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(direction, alpha=by)

    def value(seed=3):
        torch.manual_seed(seed)
        return encoder_layer(x, layer, lengths).sin().sum()

    gradients = torch.autograd.grad(value(), leaves)
    assert value(4) != value()
    move(1e-6)
    above = value()
    move(-2e-6)
    slope = (above - value()).item() / 2e-6
    along = sum((g * direction).sum() for g, direction in zip(gradients, directions, strict=True)).item()
    assert along == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("place", ["attention_dropout", "output_dropout", "down_dropout"])
def test_what_is_kept_makes_up_for_what_is_dropped(place):
    """The mean over many draws: of what is added, through a norm that is nearly linear there."""
    layer, x = layer_of({}), drawn(1, 6, D) * 0.01
    layer = layer._replace(**{name: norm._replace(eps=1e6) for name, norm in
                              (("middle_norm", layer.middle_norm), ("last_norm", layer.last_norm))})  # fmt: skip
    layer = layer._replace(activation=lambda u: u)
    expected = encoder_layer(x, layer, [6])
    torch.manual_seed(0)
    dropping = layer._replace(**{place: 0.3})
    draws = torch.stack([encoder_layer(x, dropping, [6]) for _ in range(2000)])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 2000**0.5)
    assert draws.std(0).min() > 0
    assert error.max() < 5


def test_rounds_no_worse_than_one_operation_after_the_other():
    ranks, ratios = {name: [3] for name in NAMES}, []
    exact, half = layer_of(ranks), layer_of(ranks, dtype=torch.bfloat16, master=torch.float32)
    for seed in range(8):
        torch.manual_seed(seed)
        x, lengths = drawn(1, 28, D), [5, 14, 9]
        expected = results(encoder_layer_reference, x.clone().requires_grad_(), exact, lengths)

        def errors(function, x=x, lengths=lengths, expected=expected):
            found = results(function, x.bfloat16().requires_grad_(), half, lengths)
            pairs = zip(found, expected, strict=True)
            return [float((mine.double() - right).norm() / right.norm()) for mine, right in pairs]

        pairs = zip(errors(encoder_layer), errors(encoder_layer_reference), strict=True)
        ratios += [ours / own for ours, own in pairs]
    assert sum(ratios) / len(ratios) < 1.1
