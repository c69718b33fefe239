"""The cache against a plain list of columns."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import KVCache

L, B, G, K = 2, 3, 4, 5
few = settings(max_examples=40, deadline=None)
passes = st.builds(dict, columns=st.integers(1, 6), padded=st.booleans(), shared=st.booleans())
failed_passes = st.builds(dict, columns=st.integers(1, 6), failed_after=st.integers(1, L))
truncations = st.builds(dict, kept=st.floats(0, 1))
histories = st.lists(st.one_of(passes, failed_passes, truncations), max_size=8)


def column(seed):
    """Keys and values of one position in every layer, [2, L, B, G, K]."""
    return torch.randn(2, L, B, G, K, generator=torch.Generator().manual_seed(seed))


def assert_holds(cache, columns):
    """The cache holds this list of (keys and values, real [B], positions [B])."""
    assert cache.length == len(columns)
    assert cache.mask.tolist() == [[bool(real[i]) for _, real, _ in columns] for i in range(B)]
    following = []
    for i in range(B):
        used = [int(position[i]) for _, real, position in columns if real[i]]
        following.append(used[-1] + 1 if used else 0)
    assert cache.next_positions.tolist() == following
    for layer in range(L):
        for kind, got in enumerate(cache[layer]):
            assert got.shape == (B, G, len(columns), K)
            for t, (stored, _, _) in enumerate(columns):
                assert got[:, :, t].equal(stored[kind, layer])


def write_layers(cache, columns, new, layers):
    """Writes new keys and values to the first layers; each write returns the old and the new columns of its layer."""
    stacked = torch.stack(new, 4)  # [2, L, B, G, n, K]
    for layer in range(layers):
        returned = cache.write(layer, *stacked[:, layer])
        for kind, got in enumerate(returned):
            assert got[:, :, len(columns) :].equal(stacked[kind, layer])
            assert all(got[:, :, t].equal(stored[kind, layer]) for t, (stored, _, _) in enumerate(columns))


@few
@given(histories, st.sampled_from([None, 48]), st.integers(0, 9))
def test_a_cache_holds_what_a_list_of_columns_holds(history, limit, seed):
    """A failed pass writes to some layers and never advances: nothing of it remains."""
    with patch("vita_ref.cache.GROWTH", 4):
        cache, columns, seed = KVCache(L, B, G, limit, K), [], seed * 1000
        for event in history:
            if "kept" in event:
                columns = columns[: int(event["kept"] * len(columns))]
                cache.truncate(len(columns))
                assert_holds(cache, columns)
                continue
            n, seed = event["columns"], seed + 10
            new = [column(seed + i) for i in range(n)]
            write_layers(cache, columns, new, event.get("failed_after", L))
            if "failed_after" not in event:
                start, real = cache.next_positions[:, None], torch.ones(B, n, dtype=torch.bool)
                if event["padded"]:
                    real = torch.randint(2, (B, n), generator=torch.Generator().manual_seed(seed)).bool()
                positions = start + (torch.arange(n) // 2 if event["shared"] else torch.arange(n))
                cache.advance(n, real if event["padded"] else None, positions if event["shared"] else None)
                columns = columns + [(new[i], real[:, i], positions[:, i]) for i in range(n)]
            assert_holds(cache, columns)


def test_a_cache_with_a_limit_allocates_its_memory_once():
    cache = KVCache(L, B, G, 7, K)
    held = (cache.keys.data_ptr(), cache.values.data_ptr(), cache.nbytes)
    for _ in range(7):
        for layer in range(L):
            cache.write(layer, torch.ones(B, G, 1, K), torch.ones(B, G, 1, K))
        cache.advance(1)
    assert (cache.keys.data_ptr(), cache.values.data_ptr(), cache.nbytes) == held
    assert cache.nbytes == 2 * L * B * G * 7 * K * 4


def test_a_cache_without_a_limit_grows_in_large_steps():
    cache, sizes = KVCache(1, 1, 1, None, 2), set()
    for _ in range(1000):
        cache.write(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
        cache.advance(1)
        sizes.add(cache.nbytes)
    assert len(sizes) <= 4


def test_a_write_returns_views_of_the_memory_of_the_cache():
    cache = KVCache(L, B, G, 7, K)
    keys, values = cache.write(1, torch.ones(B, G, 2, K), torch.ones(B, G, 2, K))
    assert keys.data_ptr() == cache.keys[1].data_ptr() and values.data_ptr() == cache.values[1].data_ptr()


def test_more_columns_than_the_limit_are_refused_with_all_numbers():
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
def test_a_truncation_to_more_than_the_length_or_below_zero_is_refused(length):
    cache = KVCache(L, B, G, 7, K)
    cache.advance(3)
    with pytest.raises(ValueError, match=f"3.*{length}"):
        cache.truncate(length)
    assert cache.length == 3


def test_a_full_size_cache_on_the_meta_device_allocates_nothing_and_counts_its_bytes():
    new = torch.empty(4, 32, 1091, 128, dtype=torch.float16, device="meta")
    cache = KVCache(32, 4, 32, 1091, 128, dtype=torch.float16, device="meta")
    keys, values = cache.write(31, new, new)
    cache.advance(1091)
    tensors = [keys, values, *cache[0], cache.mask, cache.next_positions]
    assert all(tensor.is_meta for tensor in tensors)
    assert [list(tensor.shape) for tensor in tensors] == [[4, 32, 1091, 128]] * 4 + [[4, 1091], [4]]
    assert cache.nbytes == 2 * 32 * 4 * 32 * 1091 * 128 * 2
    with pytest.raises(ValueError, match="1091.*1091.*for 1 more"):
        cache.write(0, new[:, :, :1], new[:, :, :1])
    cache.truncate(7)
    assert cache.write(0, new[:, :, :1], new[:, :, :1])[0].shape == (4, 32, 8, 128)


def test_padded_says_whether_any_filled_column_may_be_padding():
    """Attention needs no mask while it is False, so it may only be False if every filled column is real."""
    cache = KVCache(L, B, G, 9, K)
    cache.advance(2)
    assert not cache.padded
    cache.advance(2, torch.tensor([[True, False]] * B))
    assert cache.padded
    cache.advance(1)
    assert cache.padded
    cache.truncate(3)
    assert cache.padded
    cache.truncate(0)
    assert not cache.padded


def test_a_cache_without_a_limit_holds_no_memory_before_its_first_use():
    cache = KVCache(L, B, G, None, K)
    assert cache.nbytes == 0 and cache.length == 0 and cache[0][0].shape == (B, G, 0, K)


def test_a_limit_of_zero_is_a_full_cache():
    cache = KVCache(L, B, G, 0, K)
    for call in (lambda: cache.write(0, *torch.zeros(2, B, G, 1, K)), lambda: cache.advance(1)):
        with pytest.raises(ValueError, match="the cache is full: it holds 0 of at most 0 positions, and there is no space for 1 more"):
            call()
    assert cache.nbytes == 0
