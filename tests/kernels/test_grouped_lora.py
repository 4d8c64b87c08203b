import pytest
import torch

from lorafit.kernels import grouped_lora
from lorafit.kernels.grouped_lora import Group, Stack, add_grouped_lora, add_grouped_lora_reference, own_columns

RANKS = (3, 8, 1, 4)


def case(rows: int, tokens: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, Stack]:
    """Rows of four adapters of other ranks, some in two runs, the base's between them."""
    torch.manual_seed(rows + tokens)
    A, B = torch.randn(sum(RANKS), 24, dtype=dtype), torch.randn(sum(RANKS), 40, dtype=dtype)
    columns = [slice(sum(RANKS[:i]), sum(RANKS[: i + 1])) for i in range(4)]
    owner = [0, 0, None, 2, 3, 3, 0, None, 1][:rows]
    groups = [Group(slice(i, i + 1), columns[own]) for i, own in enumerate(owner) if own is not None]
    x, y = torch.randn(rows, tokens, 24, dtype=dtype), torch.randn(rows, tokens, 40, dtype=dtype)
    return x, y, Stack(A, B, groups, own_columns(groups, rows, sum(RANKS), x))


@pytest.mark.parametrize("at_once", [0, 10**9])
@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_each_row_gets_its_own_update(rows, tokens, at_once, monkeypatch):
    monkeypatch.setattr(grouped_lora, "AT_ONCE", at_once)
    x, y, stack = case(rows, tokens)
    expected = add_grouped_lora_reference(y, x, stack)
    result = add_grouped_lora(y, x, stack)
    assert result is y
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if rows > 2:
        assert torch.equal(expected[2], case(rows, tokens)[1][2])  # the base's row is as it was


def test_both_ways_agree_in_float32(monkeypatch):
    results = []
    for at_once in (0, 10**9):
        monkeypatch.setattr(grouped_lora, "AT_ONCE_FLOAT32_CPU", at_once)
        x, y, stack = case(9, 5, torch.float32)
        results.append(add_grouped_lora(y, x, stack))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [0, 10**9])
def test_rows_without_a_dimension_for_tokens_and_flattened_ones(at_once, monkeypatch):
    monkeypatch.setattr(grouped_lora, "AT_ONCE", at_once)
    x, y, stack = case(9, 1)
    expected = add_grouped_lora_reference(y, x, stack)[:, 0]
    torch.testing.assert_close(add_grouped_lora(y[:, 0].clone(), x[:, 0], stack), expected, rtol=1e-12, atol=1e-12)
    x, y, stack = case(9, 4)
    expected = add_grouped_lora_reference(y, x, stack).flatten(0, 1)  # as OPT's layers see them
    torch.testing.assert_close(
        add_grouped_lora(y.flatten(0, 1), x.flatten(0, 1), stack), expected, rtol=1e-12, atol=1e-12
    )
