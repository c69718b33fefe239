"""Masks and position ids, against oracles of a few lines."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.masks import (
    SEE_ALL,
    Mask,
    all_columns,
    count_positions,
    last_hidden,
    new_columns,
)

few = settings(max_examples=60, deadline=None)


@st.composite
def batches(draw):
    """Cached and new columns of a few rows: (past, real [B, T] bool), in which any column may be padding."""
    b, past, new = draw(st.integers(1, 3)), draw(st.integers(0, 4)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.booleans(), min_size=past + new, max_size=past + new), min_size=b, max_size=b))
    return past, torch.tensor(rows)


def cache_of(past, real):
    """The attributes that masks.py reads of a cache whose columns are the first ``past`` of ``real``."""
    return SimpleNamespace(length=past, mask=real[:, :past], padded=not real[:, :past].all())


def test_masks_of_small_batches_as_tables():
    two_cached = [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert Mask(2).rows(0, 2)[0, 0].int().tolist() == two_cached
    left_padded = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    assert Mask(0, torch.tensor([[0, 1, 1, 1]]).bool()).rows(0, 4)[0, 0].int().tolist() == left_padded
    right_padded = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert Mask(0, torch.tensor([[1, 1, 0, 0]]).bool()).rows(0, 4)[0, 0].int().tolist() == right_padded


@few
@given(batches())
def test_a_query_sees_the_real_keys_up_to_its_own_column_and_padding_also_sees_itself(batch):
    past, real = batch
    rows = Mask(past, real).rows(0, real.shape[1] - past)
    for row_mask, row in zip(rows[:, 0], real.tolist()):
        for query in range(past, len(row)):
            expected = [key <= query and (row[key] or key == query) for key in range(len(row))]
            assert row_mask[query - past].tolist() == expected


@few
@given(batches(), st.data())
def test_a_block_of_queries_has_the_rows_of_the_whole_mask(batch, data):
    past, real = batch
    count = real.shape[1] - past
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    for mask in (Mask(past, real), Mask(past)):
        block, whole = mask.rows(start, stop), mask.rows(0, count)
        if block is None:
            assert mask.real is None and stop - start == 1
        elif whole is not None:
            assert block.equal(whole[:, :, start:stop, : past + stop])
            assert not whole[:, :, start:stop, past + stop :].any()  # keys that no query of the block sees


def test_no_mask_is_made_where_every_query_sees_every_key():
    assert SEE_ALL.rows(0, 5) is None
    assert Mask(past=7).rows(0, 1) is None  # the only query is the last column
    assert Mask(past=7).rows(0, 2) is not None and Mask(7, torch.ones(1, 8).bool()).rows(0, 1) is not None


@few
@given(batches())
def test_new_columns_are_the_end_of_a_mask_that_covers_the_cached_ones_too(batch):
    past, real = batch
    b, s, cache = len(real), real.shape[1] - past, cache_of(past, real)
    for mask in (real, real.long()):
        new = new_columns(mask, b, s, cache)
        assert new is None if real.all() else new.equal(real[:, past:])
    every = all_columns(new_columns(real, b, s, cache), b, s, cache)
    assert every is None if real.all() else every.equal(real)


def test_cached_padding_stays_padding_where_no_new_column_is_padding():
    cached = torch.tensor([[False, True], [True, True]])
    cache = SimpleNamespace(length=2, mask=cached, padded=True)
    assert all_columns(None, 2, 3, cache).tolist() == [[False, True, True, True, True], [True] * 5]


def test_a_mask_of_another_shape_or_with_other_cached_columns_is_refused():
    real = torch.tensor([[True, False, True, True]])
    with pytest.raises(ValueError, match=r"\[1, 2\] or \[1, 4\], got \[1, 3\]"):
        new_columns(torch.ones(1, 3), 1, 2, cache_of(2, real))
    with pytest.raises(ValueError, match="differs from the cache"):
        new_columns(torch.ones(1, 4), 1, 2, cache_of(2, real))


@few
@given(batches(), st.integers(0, 9))
def test_position_ids_count_the_real_columns_from_the_start(batch, start):
    _, real = batch
    got = count_positions(real, torch.full((len(real),), start), *real.shape)
    for row, positions in zip(real.tolist(), got.tolist()):
        assert positions == [start + sum(row[:i]) if kept else 0 for i, kept in enumerate(row)]


def test_position_ids_without_padding_count_from_the_start_of_each_row():
    assert count_positions(None, torch.tensor([0, 3]), 2, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert count_positions(None, 0, 2, 2).tolist() == [[0, 1], [0, 1]]


def test_masks_and_position_ids_are_on_the_device_of_the_input():
    real = torch.ones(2, 3, dtype=torch.bool, device="meta")
    assert count_positions(real, 0, 2, 3, "meta").is_meta and count_positions(None, 0, 2, 3, "meta").is_meta
    assert Mask(0, real).rows(0, 3, "meta").is_meta and Mask(0).rows(0, 3, "meta").is_meta
    assert new_columns(real, 2, 3, None).is_meta and last_hidden(torch.ones(2, 3, 4, device="meta"), real).is_meta


def test_the_last_hidden_state_is_that_of_the_last_real_column_on_either_side():
    hidden = torch.arange(8.0).view(2, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    assert last_hidden(hidden, mask).flatten().tolist() == [1.0, 7.0]
    assert last_hidden(hidden, None).flatten().tolist() == [3.0, 7.0]
