"""The next token from logits: each filter against a slow oracle, and draws against their probabilities."""

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.sampling import (
    HUGE,
    TINY,
    Sampling,
    filter_top_k,
    filter_top_p,
    repetition_penalty,
    row_generators,
    sample,
    seen_tokens,
)

few = settings(max_examples=40, deadline=None)
rows = st.lists(st.lists(st.integers(-40, 40), min_size=7, max_size=7), min_size=1, max_size=3)


def logits_of(rows):
    return torch.tensor(rows, dtype=torch.float32) / 8


def kept_tokens(filtered):
    """The ids of each row that a filter has not set to minus infinity."""
    return [{i for i, x in enumerate(row) if x > -math.inf} for row in filtered.tolist()]


@few
@given(rows, st.floats(0.01, 1))
def test_top_p_keeps_the_smallest_set_that_reaches_p(rows, p):
    for row, got in zip(logits_of(rows), kept_tokens(filter_top_p(logits_of(rows), p))):
        probs = [math.exp(x) / sum(math.exp(y) for y in row.tolist()) for x in row.tolist()]
        total, smallest = sum(probs[i] for i in got), min(probs[i] for i in got)
        assert total >= p - 1e-5
        assert len(got) == 1 or total - smallest < p + 1e-5
        assert all(probs[i] <= smallest + 1e-7 for i in range(7) if i not in got)


def test_top_p_of_an_example():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    expected = {0.4: {0}, 0.6: {0, 1}, 0.9: {0, 1, 2}, 0.97: {0, 1, 2, 3}, 1.0: {0, 1, 2, 3}, 1e-9: {0}}
    assert {p: kept_tokens(filter_top_p(logits, p))[0] for p in expected} == expected


@pytest.mark.parametrize("size", [4, 4096])
def test_of_equal_logits_top_p_keeps_the_lowest_ids_until_p_is_reached_exactly(size):
    assert kept_tokens(filter_top_p(torch.zeros(1, size), 0.5)) == [{*range(size // 2)}]


@few
@given(st.integers(2, 300), st.integers(1, 4), st.sampled_from([0.1, 0.25, 0.5, 0.75]), st.integers(0, 999))
def test_of_equal_logits_top_p_keeps_the_lower_ids(size, levels, p, seed):
    """A sort that is not stable breaks ties as it likes from 17 tokens on."""
    logits = torch.randint(levels, (1, size), generator=torch.Generator().manual_seed(seed)).float()
    [kept] = kept_tokens(filter_top_p(logits, p))
    order = sorted(range(size), key=lambda i: (-float(logits[0, i]), i))
    assert kept == {*order[: len(kept)]}


def test_a_quarter_of_64_equal_logits_are_the_first_16():
    assert kept_tokens(filter_top_p(torch.zeros(1, 64), 0.25)) == [{*range(16)}]


def test_top_p_of_one_keeps_tokens_whose_probability_rounds_to_zero():
    assert kept_tokens(filter_top_p(torch.tensor([[0.0, 60.0, -60.0]]), 1.0)) == [{0, 1, 2}]


@few
@given(rows, st.integers(0, 9))
def test_top_k_keeps_the_k_largest_logits_and_those_equal_to_the_smallest_of_them(rows, k):
    for row, got in zip(rows, kept_tokens(filter_top_k(logits_of(rows), k))):
        smallest = sorted(row, reverse=True)[k - 1] if 0 < k < 7 else min(row)
        assert got == {i for i, x in enumerate(row) if x >= smallest}


@few
@given(rows, st.floats(0.1, 5))
def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones(rows, penalty):
    logits = logits_of(rows)
    seen = torch.arange(7).expand_as(logits) % 3 == 0
    got = repetition_penalty(logits, seen, penalty)
    for i, row in enumerate(logits.tolist()):
        lowered = [x / penalty if x > 0 else x * penalty for x in row]
        want = [lowered[j] if j % 3 == 0 else x for j, x in enumerate(row)]
        assert got[i].tolist() == pytest.approx(want, rel=1e-6)


def test_a_penalty_above_one_lowers_a_negative_logit_too():
    assert repetition_penalty(torch.tensor([[-2.0, 2.0]]), torch.tensor([[True, True]]), 2.0).tolist() == [[-4.0, 1.0]]


def drawn(logits, seed, **options):
    """Draws in which all rows share one generator."""
    generator = torch.Generator().manual_seed(seed)
    return sample(logits, Sampling(do_sample=True, **options), [generator] * len(logits))


GREEDY = [
    Sampling(),
    Sampling(temperature=0),
    Sampling(do_sample=True, temperature=0),
    Sampling(do_sample=False, temperature=2.0),
    Sampling(do_sample=True, top_k=1),
]


@pytest.mark.parametrize("options", GREEDY)
@few
@given(rows=rows)
def test_greedy_takes_the_largest_logit_of_each_row(options, rows):
    logits = logits_of([[8 * x + i for i, x in enumerate(row)] for row in rows])  # no two of a row are equal
    tokens = sample(logits, options)
    assert tokens.dtype == torch.long
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]
    assert tokens.tolist() == [int(sample(row[None], options)) for row in logits]


@pytest.mark.parametrize(
    "options, greedy",
    [
        ({}, True),
        ({"temperature": 0.7}, False),
        ({"do_sample": True}, False),
        ({"do_sample": False, "temperature": 0.7}, True),
        ({"do_sample": True, "temperature": 0}, True),
        ({"do_sample": None, "temperature": 0}, True),
    ],
)
def test_a_temperature_above_zero_or_do_sample_samples_and_do_sample_false_is_greedy(options, greedy):
    assert Sampling(**options).greedy is greedy


def test_sampling_without_a_temperature_is_sampling_at_temperature_1():
    logits = torch.linspace(-2, 2, 9).expand(200, 9)
    assert drawn(logits, 3).equal(drawn(logits, 3, temperature=1.0))
    assert not drawn(logits, 3).equal(drawn(logits, 3, temperature=0.3))


@few
@given(st.integers(2, 5), st.integers(0, 99))
def test_the_draws_of_a_row_do_not_depend_on_the_rows_behind_it(count, seed):
    logits, options = torch.linspace(-1, 1, 31), Sampling(do_sample=True)

    def answers(rows):
        generators = row_generators(torch.Generator().manual_seed(seed), rows)
        return torch.stack([sample(logits.expand(rows, -1), options, generators) for _ in range(20)], 1)

    assert answers(count)[0].equal(answers(1)[0])
    assert not answers(count)[0].equal(answers(count)[1])  # each row has a generator of its own


def test_a_list_of_generators_has_one_for_each_row():
    generators = [torch.Generator(), torch.Generator()]
    assert row_generators(generators, 2) == generators
    with pytest.raises(ValueError, match="one for each of 3 rows, got a list of 2"):
        row_generators(generators, 3)


def test_seen_tokens_are_the_tokens_of_the_prompt_without_placeholders_and_padding():
    ids, mask = torch.tensor([[1, -200, 3, 4], [0, 2, 2, 9]]), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert [row.nonzero().flatten().tolist() for row in seen_tokens(ids, mask, 6)] == [[1, 3], [2]]
    assert seen_tokens([torch.tensor([5]), ()], None, 6).nonzero().tolist() == [[0, 5]]


def test_equal_logits_give_the_lowest_id():
    assert sample(torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_are_as_frequent_as_they_are_probable(temperature):
    logits, n = torch.tensor([1.0, 0.0, -1.0, 2.0, -0.5]), 20_000
    tokens = drawn(logits.expand(n, 5), 7, temperature=temperature)
    expected = n * (logits / temperature).softmax(-1)
    chi_square = ((tokens.bincount(minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # one in a thousand, four degrees of freedom


def test_removed_tokens_are_never_drawn_and_the_others_keep_their_ratios():
    logits, n = torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 10_000
    for options in ({"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.84}):  # of three, 0.842 are in two
        counts = drawn(logits.expand(n, 4), 3, **options).bincount(minlength=4).tolist()
        assert counts[2:] == [0, 0]
        assert counts[0] / n == pytest.approx(0.625, abs=0.02)


def test_the_same_generator_state_gives_the_same_draws():
    logits = torch.linspace(-1, 1, 11).expand(50, 11)
    draws = [drawn(logits, seed).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_processed_in_float32(dtype):
    logits = torch.tensor([[10.0, 9.0, 8.0]], dtype=dtype)
    seen = torch.tensor([[True, False, True]])
    assert repetition_penalty(logits, seen, 1.3).tolist() == repetition_penalty(logits.float(), seen, 1.3).tolist()
    assert filter_top_k(logits, 2).dtype == filter_top_p(logits, 0.5).dtype == torch.float32


def test_a_tiny_temperature_gives_the_likeliest_token_and_no_nan():
    logits = torch.tensor([[1e4, 9e3, -math.inf]])
    assert sample(logits, Sampling(temperature=1e-35)).tolist() == [0]


def test_options_at_the_ends_of_their_ranges_choose_the_likeliest_token():
    logits, seen = torch.tensor([[1e4, 9e3, 0.0, -1e4]]), torch.tensor([[True, False, True, False]])
    for temperature, top_p in ((TINY, 1.0), (TINY, TINY), (1.0, TINY), (HUGE, TINY)):
        assert sample(logits, Sampling(temperature=temperature, top_p=top_p).check()).tolist() == [0]
    for penalty in (TINY, HUGE):
        options = Sampling(do_sample=True, repetition_penalty=penalty).check()
        assert sample(repetition_penalty(logits, seen, penalty), options).tolist() == [int(penalty == HUGE)]


@pytest.mark.parametrize(
    "name, value",
    [("temperature", x) for x in (-0.1, 1e-46, 1e300, math.inf, math.nan, "1", True)]
    + [("top_k", x) for x in (-1, 2.5, None)]
    + [("top_p", x) for x in (0, 1e-46, 1.01, -1, math.nan)]
    + [("repetition_penalty", x) for x in (0, 1e-46, 1e300, -2.0, math.inf)]
    + [("max_new_tokens", x) for x in (0, -1, 1.5, True)]
    + [("do_sample", x) for x in ("yes", 1)]
    + [("eos_token_id", x) for x in ("</s>", 1.5, [1, None, "a"], 2**63, True)]
    + [("pad_token_id", x) for x in ("a", 0.5, -(2**63))]
    + [("generator", x) for x in (3, [3])]
    + [("errors", x) for x in ("ignore", None, ["raise"])],
)
def test_an_option_out_of_range_is_refused_with_its_name_its_range_and_its_value(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got ") as error:
        Sampling(**{name: value}).check()
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        Sampling(),
        Sampling(temperature=0, top_k=0, top_p=1, repetition_penalty=0.5, max_new_tokens=1),
        Sampling(temperature=np.float32(0.5), top_k=np.int64(3), max_new_tokens=None, eos_token_id=[1, np.int64(2)]),
        Sampling(temperature=100.0, top_k=10**6, top_p=1e-6, repetition_penalty=3),
    ],
)
def test_options_within_their_ranges_are_returned_unchanged(options):
    assert options.check() is options


def test_options_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Sampling().top_k = 3


def test_without_a_generator_the_draws_are_those_of_torchs_own_and_new_each_time():
    torch.manual_seed(5)
    first, second = row_generators(None, 3), row_generators(None, 3)
    torch.manual_seed(5)
    again = row_generators(None, 3)
    seeds = [[g.initial_seed() for g in each] for each in (first, second, again)]
    assert seeds[0] == seeds[2] and not set(seeds[0]) & set(seeds[1]) and len(set(seeds[0])) == 3
