import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.kernels import linear_cross_entropy as module
from lorafit.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
    linear_scores,
    linear_scores_reference,
)


def head(rows, width, vocabulary, dtype, seed=0, bias=True):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, width, dtype=dtype)
    targets = torch.randint(vocabulary, (rows,))
    return hidden, weight, targets, torch.randn(vocabulary, dtype=dtype) if bias else None


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 17),
    vocabulary=st.integers(2, 40),
    block=st.tuples(st.integers(1, 20), st.integers(1, 50)),
    scale=st.sampled_from([1.0, 0.0625, 2.5]),
    softcap=st.sampled_from([None, 3.0, 30.0]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_loss_and_gradient_equal_autograd_through_whole_logits(rows, vocabulary, block, scale, softcap, bias, seed):
    hidden, weight, targets, offset = head(rows, 8, vocabulary, torch.float64, seed, bias)
    upstream = torch.randn(rows, dtype=torch.float64)  # every row has a gradient of its own

    ours = linear_cross_entropy(hidden, weight, targets, offset, scale=scale, softcap=softcap, block=block)
    (our_gradient,) = torch.autograd.grad((ours * upstream).sum(), hidden)
    plain = linear_cross_entropy_reference(hidden, weight, targets, offset, scale=scale, softcap=softcap)
    (plain_gradient,) = torch.autograd.grad((plain * upstream).sum(), hidden)

    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(our_gradient, plain_gradient, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 17),
    vocabulary=st.integers(1, 40),
    block=st.tuples(st.integers(1, 20), st.integers(1, 50)),
    scale=st.sampled_from([1.0, 0.5, 2.0]),
    softcap=st.sampled_from([None, 3.0]),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scores_equal_whole_logits_and_of_equal_logits_the_first_counts(
    rows, vocabulary, block, scale, softcap, bias, seed
):
    hidden, weight, targets, offset = head(rows, 2, vocabulary, torch.float64, seed, bias)
    # small whole numbers: most rows have several largest logits, and every product is exact
    hidden, weight, offset = hidden.round(), weight.round(), None if offset is None else offset.round()
    if rows and seed % 2:
        logits = torch.nn.functional.linear(hidden, weight, offset)
        targets = (logits == logits.amax(1, keepdim=True)).double().multinomial(1)[:, 0]  # any of the largest
    losses, correct = linear_scores(hidden, weight, targets, offset, scale=scale, softcap=softcap, block=block)
    plain, plain_correct = linear_scores_reference(hidden, weight, targets, offset, scale=scale, softcap=softcap)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(correct, plain_correct) and not losses.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_scores_of_a_large_vocabulary(dtype, softcap):
    hidden, weight, targets, bias = head(300, 16, 20_000, dtype)  # several blocks of the default size
    if dtype == torch.bfloat16:  # whole numbers are exact there too, whatever the block; many are equal
        hidden, weight, bias = (x.detach().round() for x in (hidden, weight, bias))
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    targets[:150] = logits[:150].argmax(1)
    losses, correct = linear_scores(hidden, weight, targets, bias, softcap=softcap)
    plain, plain_correct = linear_scores_reference(hidden, weight, targets, bias, softcap=softcap)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, plain_correct) and correct.sum() >= 150


def test_gradcheck():
    hidden, weight, targets, bias = head(5, 4, 7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h: linear_cross_entropy(h, weight, targets, bias, scale=0.5, softcap=2.0, block=(2, 3)), (hidden,)
    )


def test_bfloat16_keeps_float32_statistics():
    hidden, weight, targets, _ = head(64, 32, 5000, torch.bfloat16, bias=False)
    losses = linear_cross_entropy(hidden, weight, targets)
    exact = linear_cross_entropy_reference(hidden.double(), weight.double(), targets)
    assert losses.dtype == torch.float32
    assert (losses - exact).abs().max() < 0.1  # what rounding the logits to bfloat16 costs
    assert (losses.mean() - exact.mean()).abs() < 0.01
    losses.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_a_token_that_the_model_is_sure_of_keeps_the_digits_of_its_loss_and_gradient():
    torch.manual_seed(0)
    weight, targets = torch.randn(3000, 32, dtype=torch.bfloat16), torch.arange(20)
    weight = weight / weight.norm(dim=1, keepdim=True) * 4
    hidden = (weight[:20] * 1.4).detach().requires_grad_()  # the target's logit is 22, others reach 13
    losses = linear_cross_entropy(hidden, weight, targets)
    losses.sum().backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact = linear_cross_entropy_reference(exact_hidden, weight.double(), targets)
    exact.sum().backward()
    assert hidden.grad is not None and exact_hidden.grad is not None and exact.max() < 0.01
    assert ((losses - exact).abs() <= 0.03 * exact).all()
    assert (hidden.grad - exact_hidden.grad).norm() < 0.02 * exact_hidden.grad.norm()


@pytest.mark.parametrize("magnitude", [1e4, -1e4])
def test_large_logits_stay_finite(magnitude):
    hidden, weight, targets, _ = head(3, 4, 6, torch.float32, bias=False)
    losses = linear_cross_entropy(hidden * magnitude, weight, targets)
    losses.sum().backward()
    assert losses.isfinite().all() and hidden.grad is not None and hidden.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_that_rise_from_block_to_block_are_summed_exactly(dtype):
    # the last entries lie 36 nats above the first, in steps beyond and below the head-room of a block's reference
    rise = torch.tensor([0, 3, 7, 9, 20, 21, 36, 36]).repeat_interleave(5).to(dtype)
    hidden, weight, targets, _ = head(6, 16, 40, dtype, bias=False)
    losses = linear_cross_entropy(hidden, weight * 0.2, targets, rise, block=(4, 5))
    losses.sum().backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact = linear_cross_entropy_reference(exact_hidden, (weight * 0.2).double(), targets, rise.double())
    exact.sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    assert hidden.grad is not None and exact_hidden.grad is not None
    assert (losses - exact).norm() < tolerance * exact.norm()
    assert (hidden.grad - exact_hidden.grad).norm() < tolerance * exact_hidden.grad.norm()


def test_no_rows_give_no_losses():
    hidden, weight, targets, _ = head(0, 4, 6, torch.float32, bias=False)
    losses = linear_cross_entropy(hidden, weight, targets)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad is not None and hidden.grad.shape == (0, 4)


def test_a_logit_that_is_not_a_number_shows_in_the_loss():
    hidden, weight, targets, _ = head(3, 4, 6, torch.float32, bias=False)
    weight[5, 0] = torch.nan
    assert linear_cross_entropy(hidden, weight, targets, block=(3, 2)).isnan().all()


def test_logits_are_never_whole(monkeypatch):
    sizes = []
    for name in ("mm", "addmm"):
        product = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, out, by=product: sizes.append(out.numel()) or by(*a, out=out))
    hidden, weight, targets, _ = head(100, 4, 50_000, torch.float32, bias=False)
    linear_cross_entropy(hidden, weight, targets)
    linear_scores(hidden, weight, targets)
    assert max(sizes) <= 2**20 < 100 * 50_000


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_a_large_vocabulary_are_those_of_float32(dtype):
    vocabulary = 100_000  # float16 ends at 65,504, bfloat16 keeps three digits
    hidden, weight = torch.zeros(2, 4, dtype=dtype), torch.zeros(vocabulary, 4, dtype=dtype)
    losses = linear_cross_entropy(hidden, weight, torch.tensor([0, 5]))
    torch.testing.assert_close(losses, torch.full((2,), math.log(vocabulary)))


@pytest.fixture
def kept(monkeypatch):
    """Filled with the number of entries kept of each block."""
    counts, own = [], module._Weighty.of

    def spy(self, e, its_sums):
        found = own(self, e, its_sums)
        counts.append(len(e) if found is None else len(found[0]))
        return found

    monkeypatch.setattr(module._Weighty, "of", spy)
    return counts


def peaked(dtype, rows=300, vocabulary=20_000, width=64):
    """Rows over a vocabulary in which few entries are frequent (Zipf's law, squared), their targets drawn from it.

    All rows of the head have a direction in common, along which nothing may be lost: no rounding averages it out.
    """
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, dtype=torch.float64) * 0.15
    weight = torch.randn(vocabulary, width, dtype=torch.float64)
    hidden[:, 0], weight[:, 0] = 1, -2 * (1 + torch.randperm(vocabulary).double()).log()
    hidden[:, 1], weight[:, 1] = 0, 20
    targets = (hidden @ weight.T).softmax(1).multinomial(1)[:, 0]
    return hidden.to(dtype), weight.to(dtype), targets


def losses_and_gradient(hidden, weight, targets, softcap=None):
    hidden = hidden.clone().requires_grad_()
    losses = linear_cross_entropy(hidden, weight, targets, softcap=softcap, block=(len(hidden), 4096))
    losses.sum().backward()
    return losses.detach(), hidden.grad


def difference(ours, other):
    return float((ours.double() - other).norm() / other.norm())


@pytest.mark.parametrize("softcap", [None, 40.0])
def test_what_is_too_small_to_show_is_left_out_of_the_gradient(kept, monkeypatch, softcap):
    hidden, weight, targets = peaked(torch.bfloat16)
    losses, gradient = losses_and_gradient(hidden, weight, targets, softcap)
    assert len(kept) == 5 and sum(kept) < 0.9 * 20_000
    monkeypatch.setattr(module._Weighty, "of", lambda *_: None)
    all_losses, all_gradient = losses_and_gradient(hidden, weight, targets, softcap)
    assert torch.equal(losses, all_losses) and not torch.equal(gradient, all_gradient)
    exact = hidden.double().requires_grad_()
    linear_cross_entropy_reference(exact, weight.double(), targets, softcap=softcap).sum().backward()
    assert exact.grad is not None
    assert difference(gradient, exact.grad) < 1.1 * difference(all_gradient, exact.grad)
    in_sum, all_in_sum = (difference(g.double().sum(0), exact.grad.sum(0)) for g in (gradient, all_gradient))
    assert in_sum < 2 * all_in_sum  # what is lost does not add up


@pytest.mark.parametrize("softcap", [None, 200.0])
def test_a_row_that_would_lose_too_much_keeps_all(kept, softcap):
    hidden, weight, targets = peaked(torch.bfloat16, rows=400)
    hidden[3] = 0  # each entry is next to nothing, all together are the gradient: their mean, less the target's
    weight[:, 1:] += 2
    weight[targets[3]] = 0
    _, gradient = losses_and_gradient(hidden, weight, targets, softcap)
    assert sum(kept) < 0.9 * 20_000
    torch.testing.assert_close(gradient[3].float(), weight.float().mean(0), rtol=0.01, atol=0)


def test_what_a_row_leaves_out_stays_below_the_bounds_over_all_blocks():
    eps = torch.finfo(torch.bfloat16).eps
    e = torch.full((30_000, 300), 1e-12)
    e[:100] = 0.01
    e[:, :20] += 3 * eps / len(e)  # rows whose tail is 3 eps, a part of it in each block
    e = e.bfloat16()
    sums = torch.zeros(300)
    weighty, left_out, whole = module._Weighty(sums, len(e), e.dtype), torch.zeros(300, dtype=torch.float64), 0
    for block in e.split(3000):
        its_sums = block.float().sum(0)
        sums += its_sums
        found = weighty.of(block, its_sums)
        if found is None:
            continue
        entries, few, rows, its_left_out = found
        own = block.double()
        own[entries] = 0
        own[:, rows] = 0
        assert torch.equal(few, block[entries])
        torch.testing.assert_close(its_left_out.double(), own.sum(0), rtol=0.01, atol=1e-5 * float(sums.max()))
        left_out, whole = left_out + own.sum(0), whole + len(rows)
    assert whole and (left_out <= 1.001 * eps * sums).all() and (left_out / sums).mean() < eps / 2
    assert (left_out[:20] > 0.7 * eps * sums[:20]).all()


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 300), (torch.float16, 300), (torch.bfloat16, 100)])
def test_elsewhere_all_entries_count(kept, dtype, rows):
    hidden, weight, targets = peaked(dtype, rows)
    _, gradient = losses_and_gradient(hidden, weight, targets)
    exact = hidden.double().requires_grad_()
    linear_cross_entropy_reference(exact, weight.double(), targets).sum().backward()
    assert not kept and difference(gradient, exact.grad) < (1e-5 if dtype == torch.float32 else 0.03)
