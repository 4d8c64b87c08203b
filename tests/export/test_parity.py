"""The comparison itself, on numbers made by hand."""

import pytest
import torch

from lorafit.errors import ModelError
from lorafit.export._parity.compare import LIKELIEST, compare, differences


def rows(*values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([list(each)]).log() for each in values]


def test_only_what_is_likely_counts():
    expected = torch.linspace(0, -20, LIKELIEST + 5)[None]
    found = expected.clone()
    found[0, 3] += 0.25
    found[0, LIKELIEST] += 100
    apart = differences([found], [expected])
    assert len(apart) == LIKELIEST and float(apart.max()) == pytest.approx(0.25) and float(apart.sum()) < 0.26


def test_a_token_that_is_not_listed_is_no_likelier_than_those_that_are():
    expected = [torch.tensor([[-0.5, -1.5, -2.5, -4.0]])]
    found = [torch.tensor([[-0.5, -torch.inf, -2.0, -torch.inf]])]  # the least likely of those listed: -2
    assert differences(found, expected).tolist() == [0.0, 0.5, 0.5, 0.0]


def test_figures():
    expected = rows([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
    found = rows([0.4, 0.35, 0.25], [0.45, 0.1, 0.45])
    with pytest.raises(ModelError) as caught:
        compare("llama.cpp", found, expected, expected, ["q8_0", "float32"])
    message = str(caught.value)
    assert "in llama.cpp, over 2 held-out prompts (2 positions)" in message
    assert "at most 2.08 nats" in message and "2.5 and 0.3 are allowed (q8_0, float32)" in message
    assert "50.0% of the likeliest tokens are the same" in message
    parity = compare("llama.cpp", expected, expected, found, ["float16"])
    assert (parity.largest, parity.equal_greedy, parity.positions) == (0.0, 1.0, 2)
    assert parity.training == pytest.approx(float(differences(found, expected).mean()))


def test_the_coarsest_format_decides():
    expected = rows([0.5, 0.5])
    found = [expected[0] + 0.07]
    with pytest.raises(ModelError, match=r"0.05 and 0.005 are allowed \(float32\)"):
        compare("it", found, expected, expected, ["float32"])
    assert compare("it", found, expected, expected, ["float32", "bfloat16"]).tolerance.largest == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_a_miss(value: float):
    expected = rows([0.5, 0.5])
    with pytest.raises(ModelError, match="is not the tuned model and was not kept"):
        compare("it", [torch.full((1, 2), value)], expected, expected, ["q8_0"])


def test_classes_and_amounts_are_spoken_of_as_such():
    logits = [torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[-2.0, -1.0, 3.0]])]
    other = [torch.tensor([[2.01, -1.01, 0.5]]), torch.tensor([[-2.0, -1.0, 3.0]])]
    one = compare("it", other, logits, logits, ["float32"], "class")
    assert one.asked == "2 held-out texts" and one.agreement == "100.0% of the likeliest classes are the same"
    assert one.figures == "its logits differ from the tuned model's by at most 0.01, 0.00333 on average"
    flipped = [torch.tensor([[2.0, -1.0, 0.01]]), logits[1]]  # the likeliest class stays, the set of classes does not
    near = [torch.tensor([[2.0, -1.0, -0.01]]), logits[1]]
    several = compare("it", near, flipped, logits, ["float32"], "classes")
    assert several.agreement == "50.0% of the texts' classes are the same"
    assert compare("it", near, flipped, logits, ["float32"], "class").equal_greedy == 1.0


def test_amounts_may_differ_in_proportion_to_their_size():
    price, near = [torch.tensor([[250_000.0]])], [torch.tensor([[250_900.0]])]
    parity = compare("it", near, price, [torch.tensor([[0.0]])], ["float32"], "amount")
    assert parity.agreement is None and parity.equal_greedy is None and "its amounts differ" in parity.figures
    with pytest.raises(ModelError) as caught:
        compare("it", [torch.tensor([[2_000_000.0]])], price, price, ["float32"], "amount")
    assert "amounts" in str(caught.value) and "are the same" not in str(caught.value)
    with pytest.raises(ModelError):
        compare("it", [torch.tensor([[0.5]])], [torch.tensor([[0.4]])], price, ["float32"], "amount")
