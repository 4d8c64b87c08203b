import inspect

import pytest
import torch

from lorafit.kernels import document_varlen as varlen
from lorafit.kernels.document_attention import document_attention, document_attention_reference

LENGTHS = (5, 1, 12, 3)
OPTIONS = [
    {"causal": True},
    {"causal": False},
    {"causal": True, "window": 4},
    {"causal": False, "window": 3},
    {"causal": True, "window": 1},
]


def plain_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """torch's kernel by its documentation: (tokens, heads, d); a token sees `left` keys before, `right` behind it."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = (10**9 if side == -1 else side for side in window_size)
    outputs = []
    for bounds_q, bounds_k in zip(cu_seq_q.unfold(0, 2, 1).tolist(), cu_seq_k.unfold(0, 2, 1).tolist(), strict=True):
        q, k, v = query[slice(*bounds_q)], key[slice(*bounds_k)], value[slice(*bounds_k)]
        assert len(q) <= max_q and len(k) <= max_k
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        ahead = torch.arange(len(k)) - torch.arange(len(q))[:, None]
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        weights = scores.masked_fill((ahead < -left) | (ahead > right), -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


def heads(key_heads=2, groups=2, d=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(LENGTHS), count, d) for count in (key_heads * groups, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2) for shape in shapes]


def results(function, tensors, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output = function(*leaves, LENGTHS, scaling=0.4, **options)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    return [output.detach(), *[x.grad for x in leaves]]


def test_the_stand_in_takes_what_the_kernel_takes():
    kernel = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    ours, own = (inspect.signature(function).parameters for function in (plain_varlen, kernel))
    assert list(own)[:7] == list(ours)[:7]
    assert ours.keys() <= own.keys() and ours.keys() >= varlen.NEEDED


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_kernel_is_asked_for_the_reference(options, groups, monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", plain_varlen)
    monkeypatch.setattr(varlen, "can_attend", lambda *arguments: True)
    tensors = heads(groups=groups)
    expected = results(document_attention_reference, tensors, **options)
    for mine, exact in zip(results(document_attention, tensors, **options), expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-9)


def test_layers_share_the_bounds():
    first = varlen._bounds(LENGTHS, torch.device("cpu"))
    assert first.tolist() == [0, 5, 6, 18, 21]
    assert varlen._bounds(LENGTHS, torch.device("cpu")) is first


def test_never_on_the_cpu():
    q, _, v = heads()
    assert not varlen.can_attend(q.bfloat16(), v.bfloat16(), None, 0.0)


@pytest.mark.parametrize(
    ("changed", "can"),
    [
        ({}, True),
        ({"dtype": torch.float16}, True),
        ({"dtype": torch.float32}, False),
        ({"softcap": 30.0}, False),
        ({"dropout": 0.1}, False),
        ({"d": 100}, False),
        ({"d": 256}, True),
        ({"d": 264}, False),
        ({"d_v": 64}, False),
        ({"capability": (7, 5)}, False),
        ({"d": 216, "capability": (8, 9)}, False),
        ({"d": 216, "capability": (9, 0)}, True),
        ({"d": 256, "capability": (8, 6)}, True),
        ({"offered": False}, False),
    ],
    ids=str,
)
def test_what_the_kernel_lacks_is_not_asked_of_it(changed, can, monkeypatch):
    case = {"dtype": torch.bfloat16, "softcap": None, "dropout": 0.0, "d": 128, "capability": (8, 0), "offered": True}
    case |= {"d_v": changed.get("d", 128)} | changed
    monkeypatch.setattr(varlen, "is_offered", lambda: case["offered"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: case["capability"])

    class OnCuda:
        is_cuda, dtype, device = True, case["dtype"], torch.device("cuda")

        def __init__(self, d):
            self.shape = (1, 4, 10, d)

    assert varlen.can_attend(OnCuda(case["d"]), OnCuda(case["d_v"]), case["softcap"], case["dropout"]) is can
