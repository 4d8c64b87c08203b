"""On a CUDA device only: `pytest -m gpu`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lorafit.kernels import document_varlen as varlen
from lorafit.kernels.document_attention import document_attention, document_attention_reference
from lorafit.train.attention import attention_by_document, can_attend_by_document

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (700, 3, 64, 3, 21, 257, 1)
OPTIONS = [
    {"causal": True},
    {"causal": False},
    {"causal": True, "window": 50},
    {"causal": False, "window": 33},
    {"causal": True, "softcap": 20.0},
]


def heads(dtype, d, key_heads=2, groups=4):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(LENGTHS), count, d) for count in (key_heads * groups, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to("cuda", dtype).transpose(1, 2) for shape in shapes]


def results(function, tensors, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    output = function(*leaves, LENGTHS, scaling=leaves[0].shape[-1] ** -0.5, **options)
    weights = torch.linspace(-1, 1, output.numel(), device=output.device, dtype=torch.float64).view(output.shape)
    (output * weights).sum().backward()
    return [output.detach(), *[x.grad for x in leaves]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("d", [64, 128, 256])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-3), (torch.bfloat16, 0.02), (torch.float16, 5e-3)])
def test_equals_the_reference(dtype, error, d, options):
    tensors = heads(dtype, d)
    exact = results(document_attention_reference, [x.cpu().double() for x in tensors], **options)
    for mine, expected in zip(results(document_attention, tensors, **options), exact, strict=True):
        assert (mine.cpu().double() - expected).norm() < error * expected.norm()


def test_half_precision_goes_to_the_kernel():
    q, _, v = heads(torch.bfloat16, 128)
    assert varlen.can_attend(q, v, None, 0.0)


def test_a_pack_reads_as_its_documents():
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=501, num_key_value_heads=2, initializer_range=0.1, **sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to("cuda").eval()
    ids = torch.randint(3, 501, (1, sum(LENGTHS)), device="cuda")
    positions = torch.cat([torch.arange(length, device="cuda") for length in LENGTHS])[None]
    assert can_attend_by_document(model)
    with torch.no_grad():
        with attention_by_document(model):
            ours = model(input_ids=ids, position_ids=positions, document_lengths=LENGTHS, use_cache=False).logits[0]
        own = torch.cat([model(input_ids=part, use_cache=False).logits[0] for part in ids.split(LENGTHS, dim=1)])
    assert (ours - own).float().norm() < 0.02 * own.float().norm()
