"""The cache against a plain list of columns that forgets nothing and preallocates nothing."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import KVCache

L, B, G, K = 2, 3, 4, 5
few = settings(max_examples=40, deadline=None)
pieces = st.tuples(st.just("pass"), st.integers(1, 6), st.booleans(), st.booleans())
failures = st.tuples(st.just("fail"), st.integers(1, 6), st.integers(1, L))
cuts = st.tuples(st.just("cut"), st.floats(0, 1))
stories = st.lists(st.one_of(pieces, failures, cuts), max_size=8)


def column(seed):
    """Keys and values of one position in every layer, [2, L, B, G, K]."""
    return torch.randn(2, L, B, G, K, generator=torch.Generator().manual_seed(seed))


def agrees(cache, columns):
    """Whether the cache holds this list of (keys and values, real [B], positions [B])."""
    assert cache.length == len(columns)
    assert cache.mask.tolist() == [[bool(real[i]) for _, real, _ in columns] for i in range(B)]
    going_on = []
    for i in range(B):
        used = [int(position[i]) for _, real, position in columns if real[i]]
        going_on.append(used[-1] + 1 if used else 0)
    assert cache.next_positions.tolist() == going_on
    for layer in range(L):
        for kind, got in enumerate(cache[layer]):
            assert got.shape == (B, G, len(columns), K)
            for t, (stored, _, _) in enumerate(columns):
                assert got[:, :, t].equal(stored[kind, layer])


@few
@given(stories, st.sampled_from([None, 48]), st.integers(0, 9))
def test_a_cache_holds_what_a_list_of_columns_would(story, limit, seed):
    with patch("vita_ref.cache.GROWTH", 4):
        cache, columns, seed = KVCache(L, B, G, limit, K), [], seed * 1000
        for kind, *what in story:
            if kind == "cut":
                kept = int(what[0] * len(columns))
                cache.truncate(kept)
                columns = columns[:kept]
                agrees(cache, columns)
                continue
            n, seed = what[0], seed + 10
            new = [column(seed + i) for i in range(n)]
            keys, values = torch.stack(new, 4)  # each [L, B, G, n, K]
            for layer in range(L if kind == "pass" else what[1]):  # a pass that fails writes and never advances
                seen = cache.write(layer, keys[layer], values[layer])
                for got, stored, put in zip(seen, (0, 1), (keys, values)):
                    assert got[:, :, len(columns) :].equal(put[layer])
                    assert all(got[:, :, t].equal(c[0][stored, layer]) for t, c in enumerate(columns))
            if kind == "pass":
                real = torch.randint(2, (B, n), generator=torch.Generator().manual_seed(seed)).bool()
                positions = torch.arange(n) // 2 + cache.next_positions[:, None]
                following = torch.arange(n) + cache.next_positions[:, None]
                some_padded, shared = what[1:]
                cache.advance(n, real if some_padded else None, positions if shared else None)
                real = real if some_padded else torch.ones_like(real)
                positions = positions if shared else following
                columns += [(new[i], real[:, i], positions[:, i]) for i in range(n)]
            agrees(cache, columns)


def test_memory_is_allocated_once_where_the_limit_is_known():
    cache = KVCache(L, B, G, 7, K)
    held = (cache.keys.data_ptr(), cache.values.data_ptr(), cache.nbytes)
    for _ in range(7):
        for layer in range(L):
            cache.write(layer, torch.ones(B, G, 1, K), torch.ones(B, G, 1, K))
        cache.advance(1)
    assert (cache.keys.data_ptr(), cache.values.data_ptr(), cache.nbytes) == held
    assert cache.nbytes == 2 * L * B * G * 7 * K * 4


def test_memory_grows_in_large_steps_where_no_limit_is_known():
    cache, sizes = KVCache(1, 1, 1, None, 2), set()
    for _ in range(1000):
        cache.write(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        cache.advance(1)
        sizes.add(cache.nbytes)
    assert len(sizes) <= 4


def test_views_share_the_memory_of_the_cache():
    cache = KVCache(L, B, G, 7, K)
    keys, values = cache.write(1, torch.ones(B, G, 2, K), torch.ones(B, G, 2, K))
    assert keys.data_ptr() == cache.keys[1].data_ptr() and values.data_ptr() == cache.values[1].data_ptr()


def test_more_than_fits_is_an_error_with_all_the_numbers():
    cache = KVCache(L, B, G, 70, K)
    cache.advance(66)
    with pytest.raises(ValueError, match="66.*70.*5"):
        cache.write(0, torch.ones(B, G, 5, K), torch.ones(B, G, 5, K))
    with pytest.raises(ValueError, match="66.*70.*9"):
        cache.advance(9)
    assert cache.length == 66


@pytest.mark.parametrize("shape", [(B + 1, G, 2, K), (B, 1, 2, K), (B, G, 2, K + 1), (1, G, 2, K)])
def test_keys_of_another_shape_are_refused_with_both_shapes(shape):
    cache = KVCache(L, B, G, 7, K)
    with pytest.raises(ValueError) as error:
        cache.write(0, torch.ones(shape), torch.ones(shape))
    assert str([B, G, 2, K]) in str(error.value) and str(list(shape)) in str(error.value)


def test_values_must_have_the_shape_of_the_keys():
    with pytest.raises(ValueError, match="got"):
        KVCache(L, B, G, 7, K).write(0, torch.ones(B, G, 2, K), torch.ones(B, G, 3, K))


@pytest.mark.parametrize("length", [-1, 4])
def test_a_cut_outside_what_is_there_is_refused(length):
    cache = KVCache(L, B, G, 7, K)
    cache.advance(3)
    with pytest.raises(ValueError, match=f"3.*{length}"):
        cache.truncate(length)
    assert cache.length == 3


def test_a_full_size_cache_of_no_memory_runs_on_the_meta_device():
    cache = KVCache(32, 4, 32, 1091, 128, dtype=torch.float16, device="meta")
    new = torch.empty(4, 32, 1091, 128, dtype=torch.float16, device="meta")
    keys, values = cache.write(31, new, new)
    cache.advance(1091)
    assert keys.shape == values.shape == new.shape and cache.next_positions.shape == (4,)
    assert cache.nbytes == 2 * 32 * 4 * 32 * 1091 * 128 * 2
