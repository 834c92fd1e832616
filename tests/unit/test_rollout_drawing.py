"""What is drawn from given logits, and the products the logits come from."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import TopPLogitsWarper

from tutelage.rollouts.drawing import Drawing, inverse_cdf, uniforms
from tutelage.rollouts.products import BLOCK, MANY_ROWS, WIDE_BLOCK, multiply


def by_definition(logits_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token whose cumulative probability is above the uniform number, all in float64."""
    cdf_NV = torch.softmax(logits_NV.double(), dim=-1).cumsum(dim=-1)
    return (cdf_NV <= uniform_N[:, None] * cdf_NV[:, -1:]).sum(dim=-1)


def test_by_hand() -> None:
    """Probabilities 1/2, 0, 1/8, 3/8: the steps of the cumulative distribution are at 0, 1/2 and 5/8."""
    logits_V = torch.tensor([math.log(4), float("-inf"), math.log(1), math.log(3)])
    uniform_N = torch.tensor([0.0, 0.499999, 0.500001, 0.624999, 0.625001, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits_V.repeat(6, 1), uniform_N).tolist() == [0, 0, 2, 2, 3, 3]


@pytest.mark.parametrize("size", [1, 7, 320, 1009, 49152])
def test_blocks_find_the_token_of_the_whole_distribution(size: int) -> None:
    """One block, two of unequal use, a prime number of tokens, and a vocabulary of 96 blocks.

    Two tokens whose border is nearer to the draw than 1e-6 may be told apart differently: one in 2000 here.
    """
    generator = torch.Generator().manual_seed(size)
    logits_NV = torch.randn(200, size, generator=generator) * 4
    uniform_N = torch.rand(200, generator=generator, dtype=torch.float64)
    expected_N = by_definition(logits_NV, uniform_N)
    assert int((inverse_cdf(logits_NV.clone(), uniform_N) != expected_N).sum()) <= 1


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Only tokens 5 and 700 of 1024 are possible, at the very ends of the uniform numbers and between."""
    logits_NV = torch.full((4, 1024), float("-inf"))
    logits_NV[:, 5], logits_NV[:, 700] = 1.0, 1.0
    uniform_N = torch.tensor([0.0, 0.5 - 1e-12, 0.5 + 1e-12, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits_NV, uniform_N).tolist() == [5, 5, 700, 700]


def test_shares_of_many_draws() -> None:
    """χ² of 20000 draws over 50 tokens, 49 degrees of freedom: below 85.35 in 999 cases of 1000."""
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(50, generator=generator)
    drawn = inverse_cdf(logits_V.repeat(20000, 1), uniforms(11, 20000))
    expected_V = torch.softmax(logits_V, dim=-1) * 20000
    found_V = torch.bincount(drawn, minlength=50)
    assert float(((found_V - expected_V) ** 2 / expected_V).sum()) < 85.35


def test_temperature_then_top_p_as_transformers_defines_them() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_NV = torch.randn(100, 320, generator=generator) * 3
    uniform_N = uniforms(5, 100)
    kept_NV = TopPLogitsWarper(0.7)(torch.zeros(100, 1, dtype=torch.long), logits_NV / 0.6)
    drawing = Drawing(temperature=0.6, top_p=0.7, stop_ids=[])
    assert drawing(logits_NV.clone(), uniform_N, [0] * 100).tolist() == by_definition(kept_NV, uniform_N).tolist()


def test_greedy_takes_the_best_that_may_come_yet() -> None:
    logits_NV = torch.tensor([[1.0, 3.0, 2.0]]).repeat(3, 1)
    drawing = Drawing(temperature=0.0, top_p=1.0, stop_ids={1}, min_new_tokens=2)
    assert drawing(logits_NV, None, [0, 1, 2]).tolist() == [2, 2, 1]


def test_uniform_numbers_are_the_seeds_own() -> None:
    assert torch.equal(uniforms(7, 12)[:5], uniforms(7, 5))
    assert not torch.equal(uniforms(7, 5), uniforms(8, 5))


@pytest.mark.parametrize("width", [7, BLOCK * 5, 100, WIDE_BLOCK * 16, WIDE_BLOCK * 17 + 5])
@pytest.mark.parametrize("rows", [1, 2, MANY_ROWS, MANY_ROWS + 1])
def test_every_way_to_multiply_gives_the_product(rows: int, width: int) -> None:
    """In float64, into the middle of wider rows; 7, 100 and the last are no whole number of blocks."""
    generator = torch.Generator().manual_seed(rows)
    x_MK = torch.randn(rows, 48, generator=generator, dtype=torch.float64)
    weight_NK = torch.randn(width, 48, generator=generator, dtype=torch.float64)
    out_MN = torch.zeros(rows, width + 8, dtype=torch.float64)
    multiply(x_MK, weight_NK, out_MN[:, 4:-4])
    torch.testing.assert_close(out_MN[:, 4:-4], functional.linear(x_MK, weight_NK))
    assert not out_MN[:, :4].any()
    assert not out_MN[:, -4:].any()
