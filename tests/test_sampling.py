"""The next token from logits: each filter against a slow oracle, draws against their probabilities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.sampling import (
    HUGE,
    TINY,
    check_options,
    filter_top_k,
    filter_top_p,
    repetition_penalty,
    sample,
)

few = settings(max_examples=40, deadline=None)
rows = st.lists(st.lists(st.integers(-40, 40), min_size=7, max_size=7), min_size=1, max_size=3)


def logits_of(rows):
    return torch.tensor(rows, dtype=torch.float32) / 8


def kept(filtered):
    return [{i for i, x in enumerate(row) if x > -math.inf} for row in filtered.tolist()]


@few
@given(rows, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(rows, p):
    for row, got in zip(logits_of(rows), kept(filter_top_p(logits_of(rows), p))):
        probs = [math.exp(x) / sum(math.exp(y) for y in row.tolist()) for x in row.tolist()]
        mass = sum(probs[i] for i in got)
        least = min(got, key=probs.__getitem__)
        assert mass >= p - 1e-5
        assert len(got) == 1 or mass - probs[least] < p + 1e-5
        assert all(probs[i] <= probs[least] + 1e-7 for i in range(7) if i not in got)


def test_top_p_counts_on_an_example():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    wanted = {0.4: {0}, 0.6: {0, 1}, 0.9: {0, 1, 2}, 0.97: {0, 1, 2, 3}, 1.0: {0, 1, 2, 3}, 1e-9: {0}}
    assert {p: kept(filter_top_p(logits, p))[0] for p in wanted} == wanted


def test_top_p_stops_where_p_is_reached_exactly():
    assert kept(filter_top_p(torch.zeros(1, 4), 0.5)) == [{0, 1}]


def test_top_p_of_one_keeps_even_what_rounds_to_nothing():
    assert kept(filter_top_p(torch.tensor([[0.0, 60.0, -60.0]]), 1.0)) == [{0, 1, 2}]


@few
@given(rows, st.integers(0, 9))
def test_top_k_keeps_the_k_largest_and_what_equals_the_smallest_of_them(rows, k):
    got = kept(filter_top_k(logits_of(rows), k))
    for row, have in zip(rows, got):
        least = sorted(row, reverse=True)[k - 1] if 0 < k < 7 else min(row)
        assert have == {i for i, x in enumerate(row) if x >= least}


@few
@given(rows, st.floats(0.1, 5))
def test_the_penalty_divides_what_is_positive_and_multiplies_what_is_negative(rows, penalty):
    logits = logits_of(rows)
    seen = torch.arange(7).expand_as(logits) % 3 == 0
    got = repetition_penalty(logits, seen, penalty)
    for i, row in enumerate(logits.tolist()):
        want = [x if j % 3 else x / penalty if x > 0 else x * penalty for j, x in enumerate(row)]
        assert got[i].tolist() == pytest.approx(want, rel=1e-6)


def test_a_penalty_above_one_lowers_a_negative_logit_too():
    assert repetition_penalty(torch.tensor([[-2.0, 2.0]]), torch.tensor([[True, True]]), 2.0).tolist() == [[-4.0, 1.0]]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0}, {"do_sample": True, "top_k": 1}])
@few
@given(rows=rows)
def test_greedy_takes_the_largest_and_a_row_does_not_see_its_neighbours(options, rows):
    logits = logits_of([[3 * x + i for i, x in enumerate(row)] for row in rows]) + torch.arange(7) / 64  # no ties
    together = sample(logits, **options)
    assert together.dtype == torch.long
    assert together.tolist() == [max(range(7), key=row.__getitem__) for row in logits.tolist()]
    assert together.tolist() == [int(sample(row[None], **options)) for row in logits]


def test_equal_logits_give_the_lowest_id():
    assert sample(torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_as_frequent_as_they_are_probable(temperature):
    logits, n = torch.tensor([1.0, 0.0, -1.0, 2.0, -0.5]), 20_000
    drawn = sample(logits.expand(n, 5), do_sample=True, temperature=temperature, generator=torch.manual_seed(7))
    expected = n * (logits / temperature).softmax(-1)
    chi_square = ((drawn.bincount(minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # one in a thousand, four degrees of freedom


def test_filtered_tokens_are_never_drawn_and_the_rest_keep_their_odds():
    logits, n = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 10_000
    for options in ({"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.84}):  # of three, 0.842 are in two
        drawn = sample(logits.expand(n, 4), do_sample=True, generator=torch.manual_seed(3), **options)
        counts = drawn.bincount(minlength=4).tolist()
        assert counts[2:] == [0, 0]
        assert counts[0] / n == pytest.approx(0.625, abs=0.02)


def test_the_same_generator_state_gives_the_same_draws():
    logits = torch.linspace(-1, 1, 11).expand(50, 11)
    draws = [sample(logits, do_sample=True, generator=torch.Generator().manual_seed(s)).tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_worked_on_in_float32(dtype):
    logits = torch.tensor([[10.0, 9.0, 8.0]], dtype=dtype)
    seen = torch.tensor([[True, False, True]])
    assert repetition_penalty(logits, seen, 1.3).tolist() == repetition_penalty(logits.float(), seen, 1.3).tolist()
    assert filter_top_k(logits, 2).dtype == filter_top_p(logits, 0.5).dtype == torch.float32


def test_a_tiny_temperature_is_greedy_and_no_nan():
    logits = torch.tensor([[1e4, 9e3, -math.inf]])
    assert sample(logits, do_sample=True, temperature=1e-35).tolist() == [0]


def test_options_at_the_ends_of_their_ranges_leave_the_likeliest():
    logits, seen = torch.tensor([[1e4, 9e3, 0.0, -1e4]]), torch.tensor([[True, False, True, False]])
    for temperature, top_p in ((TINY, 1.0), (TINY, TINY), (1.0, TINY), (HUGE, TINY)):
        check_options(temperature=temperature, top_p=top_p)
        assert sample(logits, do_sample=True, temperature=temperature, top_p=top_p).tolist() == [0]
    for penalty in (TINY, HUGE):
        check_options(repetition_penalty=penalty)
        assert sample(repetition_penalty(logits, seen, penalty), do_sample=True).tolist() == [int(penalty == HUGE)]


@pytest.mark.parametrize(
    "name, value",
    [("temperature", x) for x in (-0.1, 1e-46, 1e300, math.inf, math.nan, "1", True)]
    + [("top_k", x) for x in (-1, 2.5, None)]
    + [("top_p", x) for x in (0, 1e-46, 1.01, -1, math.nan)]
    + [("repetition_penalty", x) for x in (0, 1e-46, 1e300, -2.0, math.inf)],
)
def test_an_option_out_of_range_is_named_with_its_range_and_what_came(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got ") as error:
        check_options(**{name: value})
    assert repr(value) in str(error.value)


def test_options_at_the_ends_of_their_ranges_are_taken():
    check_options(temperature=0, top_k=0, top_p=1, repetition_penalty=0.5)
    check_options(temperature=100.0, top_k=10**6, top_p=1e-6, repetition_penalty=3)
