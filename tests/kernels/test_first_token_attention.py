import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels.first_token_attention import first_token_attention, first_token_attention_reference


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), heads=st.integers(1, 3))
def test_each_document_s_query_sees_its_own_tokens_only(lengths, heads):
    torch.manual_seed(0)
    shapes = (len(lengths), heads, 4), (sum(lengths), heads, 4), (sum(lengths), heads, 4)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours = first_token_attention(*inputs, lengths, scaling=0.7)
    reference = first_token_attention_reference(*inputs, lengths, scaling=0.7)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((output * weights).sum(), inputs) for output in (ours, reference))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    inputs = torch.randn(1, 1, 4), torch.randn(50, 1, 4), torch.randn(50, 1, 4)
    whole = first_token_attention(*inputs, [50], scaling=0.5)
    dropped = torch.stack([first_token_attention(*inputs, [50], scaling=0.5, dropout=0.3) for _ in range(2000)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), whole, rtol=0.05, atol=0.02)
