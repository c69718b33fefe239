"""Rotary positions: which spelling of a Qwen2 config counts, and YaRN against numbers that were computed by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.config import YarnConfig
from vita_ref.decoder import rope_angles
from vita_ref.files.rope import read_rope

ONE = torch.tensor([[1]])
few = settings(max_examples=60, deadline=None, derandomize=True)


def rates(head_dim, theta, yarn=None):
    """Radians per position of each pair, in float64 from the angles at position 1, and the factor of cosine and sine."""
    cos, sin = (x.flatten().double() for x in rope_angles(ONE, head_dim, theta, yarn))
    return torch.atan2(sin, cos), torch.hypot(cos, sin)


# ---- YaRN


def test_rates_of_yarn_computed_by_hand():
    """theta = 10^4 and head_dim = 8 give the rates 1, 1/10, 1/100 and 1/1000; a text has 2,000 positions.

    32 turns in it: pair log10(2000 / (64 pi)) = 0.998, rounded down 0. One turn: log10(2000 / (2 pi)) = 2.503, rounded up
    3. So the shares of the rates that are kept are 1, 2/3, 1/3, 0; the rest is divided by 4. ln 4 = 1.386.
    """
    got, scale = rates(8, 1e4, YarnConfig(4.0, 2000))
    want = [1.0, 0.1 * 2 / 3 + 0.025 / 3, 0.01 / 3 + 0.0025 * 2 / 3, 0.00025]
    assert want[1:3] == pytest.approx([0.075, 0.005])
    assert got.tolist() == pytest.approx(want, rel=1e-5)
    assert scale.tolist() == pytest.approx([1.1386294] * 4, rel=1e-6)


def test_without_rounding_the_limits_lie_between_pairs():
    got, _ = rates(8, 1e4, YarnConfig(4.0, 2000, truncate=False))
    low, high = math.log10(2000 / (64 * math.pi)), math.log10(2000 / (2 * math.pi))
    kept = [1, 1 - (1 - low) / (high - low), 1 - (2 - low) / (high - low), 0]
    want = [10.0**-i * (k + (1 - k) / 4) for i, k in enumerate(kept)]
    assert got.tolist() == pytest.approx(want, rel=1e-5)


def test_the_setting_of_qwen2_5_keeps_the_first_24_pairs_and_slows_the_last_24():
    """theta = 10^6, head_dim = 128, 32,768 positions: the limits are 23.6, rounded down, and 39.7, rounded up."""
    plain, got = rates(128, 1e6)[0], rates(128, 1e6, YarnConfig(4.0, 32768))[0]
    assert got[:24].tolist() == pytest.approx(plain[:24].tolist(), rel=1e-5)
    assert got[40:].tolist() == pytest.approx((plain[40:] / 4).tolist(), rel=1e-5)
    between = (got / plain)[24:40]
    assert (between < 1).all() and (between > 0.25).all() and (between.diff() < 0).all()


@pytest.mark.parametrize(
    ("theta", "config", "want"),
    [  # head_dim 16, factor 4: what transformers 5.24 gives
        (1e6, {"length": 32768},
         [1.0, 0.177828, 0.0316228, 0.00421756, 0.0005, 4.4457e-05, 7.90569e-06, 1.40585e-06]),
        (1e4, {"length": 2},  # both limits are at the first pair
         [1.0, 0.0790569, 0.025, 0.00790569, 0.0025, 0.000790569, 0.00025, 7.90569e-05]),
        (1e4, {"length": 4096, "truncate": False},
         [1.0, 0.316228, 0.1, 0.0286136, 0.00655697, 0.00128563, 0.00025, 7.90569e-05]),
    ],
)  # fmt: skip
def test_rates_of_yarn_are_those_of_transformers(theta, config, want):
    got, scale = rates(16, theta, YarnConfig(4.0, config.pop("length"), **config))
    assert got.tolist() == pytest.approx(want, rel=1e-5)
    assert scale.tolist() == pytest.approx([1.138629436] * 8, rel=1e-6)


def test_rates_of_yarn_are_on_the_device_of_the_positions():
    assert all(x.is_meta for x in rope_angles(ONE.to("meta"), 16, 1e6, YarnConfig(4.0, 32768)))


@few
@given(st.sampled_from([4, 8, 64]), st.sampled_from([1e2, 1e4, 1e6]), st.floats(1, 64), st.integers(10, 10**5))
def test_every_rate_lies_between_the_plain_one_and_that_divided_by_the_factor(size, theta, factor, length):
    plain, got = rates(size, theta)[0], rates(size, theta, YarnConfig(factor, length))[0]
    assert (got <= plain * (1 + 1e-5)).all() and (got >= plain / factor * (1 - 1e-5)).all()


@few
@given(st.sampled_from([4, 10, 64]), st.sampled_from([1e2, 1e4, 1e6]), st.integers(10, 10**5))
def test_a_factor_of_one_changes_nothing(size, theta, length):
    plain, got = rates(size, theta), rates(size, theta, YarnConfig(1.0, length))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(plain, got))


def test_without_yarn_the_angles_are_those_of_the_formula_bit_by_bit():
    positions = torch.arange(5000)[None]
    angles = positions[:, None, :, None].float() * (1.0 / 1e6 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    assert all(got.equal(want) for got, want in zip(rope_angles(positions, 64, 1e6), (angles.cos(), angles.sin())))


def test_the_scale_is_that_of_the_paper_unless_one_is_given():
    assert YarnConfig(4.0, 9).attention_scale == pytest.approx(0.1 * math.log(4) + 1)
    assert YarnConfig(4.0, 9, attention_factor=0.7).attention_scale == 0.7


# ---- spellings


@pytest.mark.parametrize(
    ("raw", "theta", "yarn"),
    [
        ({}, 1e4, None),
        ({"rope_theta": 5.0}, 5.0, None),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, 7.0, None),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default"}}, 5.0, None),
        ({"rope_theta": 5.0, "rope_scaling": {"rope_theta": 7.0, "type": "default"}}, 7.0, None),
        ({"rope_parameters": {"rope_theta": 7.0}, "rope_scaling": {"type": "default"}}, 1e4, None),
        ({"rope_theta": 5.0, "rope_scaling": {"type": "yarn", "factor": 2.0}}, 5.0, YarnConfig(2.0, 32768)),
        (
            {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5.0}},
            5.0,
            YarnConfig(2.0, 64),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 99, "beta_fast": 16}},
            1e4,
            YarnConfig(4, 99, beta_fast=16),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0}},
            1e4,
            YarnConfig(4.0, 32768, attention_factor=(0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
        ),
    ],
)
def test_the_spelling_that_counts_is_that_of_transformers(raw, theta, yarn):
    assert read_rope(raw, "config.json") == (theta, yarn)
