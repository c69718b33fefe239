"""The eye against golden data, against a slow version of itself, and against laws of tiles."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref import Vita
from vita_ref.config import VisionConfig, VitaConfig
from vita_ref.vision import Projector, VisionLayer, VisionTower, pixel_shuffle

BOUND = 2e-5
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 999)
TINY = VisionConfig(12, 22, 2, 3, image_size=28, patch_size=7)


def source(seed):
    return torch.Generator().manual_seed(seed)


def randomised(module, seed=0):
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.uniform_(-0.7, 0.7, generator=source(seed + parameter.numel()))
    return module


def off(got, want):
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().nan_to_num(nan=torch.inf).max())


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.float32)


def test_golden_hidden_states_of_every_layer_and_what_the_projector_makes_of_the_last(vita):
    t, tower = case("vision"), vita.vision
    pixels = case("pool")["images"][t["images_index"]]
    with torch.no_grad():
        x = tower.embeddings(pixels)
        assert off(x, t["hidden_states"][0]) < BOUND
        for layer, want in zip(tower.encoder.layers, t["hidden_states"][1:], strict=True):
            x = layer(x)
            assert off(x, want) < BOUND
        assert off(x[:, 1:], t["selected"]) < BOUND  # no norm behind the last layer
        assert off(tower(pixels), t["shuffled"]) < BOUND
        assert off(vita.projector(tower(pixels)), t["projected"]) < BOUND
        assert off(vita.encode_images(pixels), t["projected"]) < BOUND


def test_golden_picture_of_another_size_has_its_positions_stretched(vita):
    t = case("vision_other_size")
    with torch.no_grad():
        assert off(vita.vision.embeddings(t["pixel_values"]), t["embeddings"]) < BOUND
        assert off(vita.encode_images(t["pixel_values"]), t["projected"]) < BOUND


def test_golden_pixel_shuffle_is_exact():
    t = case("pixel_shuffle")
    assert pixel_shuffle(t["x"], 2).equal(t["y"])


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_a_shuffled_position_holds_its_square_of_neighbours_row_by_row(n, rows, columns, factor, c):
    x = torch.arange(n * rows * columns * factor**2 * c).view(n, rows * factor, columns * factor, c)
    got = pixel_shuffle(x, factor)
    assert got.shape == (n, rows, columns, factor**2 * c)
    for i in range(n):
        for y in range(rows):
            for z in range(columns):
                square = x[i, y * factor : (y + 1) * factor, z * factor : (z + 1) * factor]
                assert got[i, y, z].tolist() == [v for line in square.tolist() for pixel in line for v in pixel]


def test_a_grid_that_the_shuffle_does_not_divide_is_refused_with_its_sizes():
    with pytest.raises(ValueError, match="3 x 4.*2"):
        pixel_shuffle(torch.zeros(1, 3, 4, 5), 2)


def slow_layer(layer, x, config):
    """One layer, a head at a time, in float64."""
    layer, x = copy.deepcopy(layer).double(), x.double()

    def normed(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return centred / spread * norm.weight + norm.bias

    c, heads = x.shape[2], config.num_attention_heads
    size, y, mixed = c // heads, normed(x, layer.norm1), []
    bias = layer.attn.qkv.bias if config.qkv_bias else torch.zeros(3 * c).double()
    q, k, v = ((y @ layer.attn.qkv.weight[i : i + c].T + bias[i : i + c]) for i in (0, c, 2 * c))
    for h in range(heads):
        here = slice(h * size, (h + 1) * size)
        mixed.append((q[..., here] @ k[..., here].mT / math.sqrt(size)).softmax(-1) @ v[..., here])
    x = x + layer.attn.proj(torch.cat(mixed, -1)) * layer.ls1
    y = layer.mlp.fc1(normed(x, layer.norm2))
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))  # the exact GELU
    return x + layer.mlp.fc2(y) * layer.ls2


@few
@given(st.integers(1, 3), st.integers(2, 5), st.sampled_from([1e-6, 0.3]), st.booleans(), seeds)
def test_a_layer_agrees_with_one_that_goes_head_by_head(heads, size, eps, bias, seed):
    config = VisionConfig(heads * size, 17, 1, heads, layer_norm_eps=eps, qkv_bias=bias)
    layer = randomised(VisionLayer(config), seed)
    x = torch.randn(2, 7, heads * size, generator=source(seed))
    assert off(layer(x), slow_layer(layer, x, config)) < 1e-4


def test_layer_scales_of_zero_shut_both_branches():
    layer = randomised(VisionLayer(TINY))
    x = torch.randn(2, 7, 12, generator=source(0))
    layer.ls1.zero_()
    layer.ls2.zero_()
    assert layer(x).equal(x)


@few
@given(st.booleans(), st.sampled_from([1, 2]), st.integers(1, 3), st.integers(2, 4), seeds)
def test_every_tile_gives_as_many_rows_as_its_config_says_whatever_stands_beside_it(keep, shuffle, n, grid, seed):
    keep = keep and shuffle == 1
    side = 3 * shuffle * grid
    config = replace(TINY, image_size=side, patch_size=3, shuffle=shuffle, keep_class_token=keep)
    tower = randomised(VisionTower(config), seed)
    pixels = torch.randn(n, 3, side, side, generator=source(seed))
    got = tower(pixels)
    assert got.shape == (n, config.num_positions, config.feature_size)
    for tile, want in zip(pixels, got):
        assert off(tower(tile[None])[0], want) < 1e-4
    assert randomised(Projector(config.feature_size, 10))(got).shape == (n, config.num_positions, 10)


def test_the_features_of_the_patches_are_the_same_with_the_class_token_kept():
    kept, dropped = (randomised(VisionTower(replace(TINY, shuffle=1, keep_class_token=k))) for k in (True, False))
    pixels = torch.randn(2, 3, 28, 28, generator=source(1))
    assert kept(pixels)[:, 1:].equal(dropped(pixels))


def test_features_are_halved_as_vita_1_5_was_trained():
    assert VitaConfig.preset("vita-1.5").vision.feature_scale == TINY.feature_scale == 0.5
    tower, whole = (randomised(VisionTower(replace(TINY, feature_scale=s))) for s in (0.5, 1.0))
    pixels = torch.randn(2, 3, 28, 28, generator=source(1))
    assert tower(pixels).equal(whole(pixels) / 2)


def test_patches_count_row_by_row_and_each_has_its_own_position():
    tower = randomised(VisionTower(TINY))
    emptied = tower.embeddings
    emptied.position_embedding.copy_(torch.arange(17.0)[None, :, None].expand(1, 17, 12))
    emptied.class_embedding.zero_()
    emptied.patch_embedding.weight.fill_(1 / (3 * 7 * 7))
    emptied.patch_embedding.bias.zero_()
    pixels = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(7, 2).repeat_interleave(7, 3).expand(1, 3, 28, 28)
    want = torch.tensor([0.0, *(100 * i + i + 1 for i in range(16))])
    assert off(emptied(pixels * 100)[0, :, 0], want) < 1e-2


def test_a_picture_that_is_not_square_keeps_rows_and_columns_apart():
    tower = randomised(VisionTower(TINY))
    table = torch.arange(4.0).view(1, 4, 1).expand(4, 4, 12)  # the position of a row, the same in its columns
    tower.embeddings.position_embedding[0, 1:] = table.transpose(0, 1).reshape(16, 12)
    stretched = tower.embeddings.positions(2, 6)[0, 1:].unflatten(0, (2, 6))
    assert off(stretched, stretched[:, :1].expand(2, 6, 12)) < 1e-5
    assert (stretched[1] > stretched[0] + 1).all()
    assert tower(torch.zeros(1, 3, 14, 42)).shape == (1, 3, 48)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("side", [28, 42])
def test_half_precision_stays_near_float32(dtype, bound, side):
    half = randomised(VisionTower(TINY)).to(dtype)
    pixels = torch.randn(2, 3, side, side, generator=source(2)).to(dtype)
    got, want = half(pixels), copy.deepcopy(half).float()(pixels.float())
    assert got.dtype == dtype and (got.float() - want).norm() / want.norm() < bound


@pytest.mark.parametrize(("name", "positions"), [("documented", 1025), ("vita-1.5", 256)])
def test_full_sizes_run_on_the_meta_device(name, positions):
    config = VitaConfig.preset(name)
    with torch.device("meta"):
        tower = VisionTower(config.vision)
        projector = Projector(config.vision.feature_size, config.decoder.hidden_size)
        seen = projector(tower(torch.empty(3, 3, 448, 448)))
    assert seen.shape == (3, positions, config.decoder.hidden_size)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 4, 28, 28), (1, 3, 30, 28), (1, 3, 28, 31), (1, 3, 28, 35)])
def test_pixels_of_another_shape_are_refused_with_their_sizes(shape):
    with pytest.raises(ValueError) as error:
        randomised(VisionTower(TINY))(torch.zeros(shape))
    assert str(list(shape)) in str(error.value) or "4 x 5" in str(error.value)
