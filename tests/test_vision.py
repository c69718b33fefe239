"""The vision tower against upstream's golden data and a slow version of itself. Run: ``pytest tests/test_vision.py``"""

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
from vita_ref.vision import (
    Projector,
    VisionAttention,
    VisionLayer,
    VisionTower,
    pixel_shuffle,
)

BOUND = 2e-5
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 999)
TINY = VisionConfig(12, 22, 2, 3, image_size=28, patch_size=7)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomised(module, seed=0):
    """The module with uniform parameters, of which no two are equal."""
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.uniform_(-0.7, 0.7, generator=torch.Generator().manual_seed(seed + parameter.numel()))
    return module


def off(got, want):
    """The largest difference; infinite if there is a NaN."""
    assert got.shape == want.shape
    return float((got.double() - want.double()).abs().nan_to_num(nan=torch.inf).max())


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained(GOLDEN / "checkpoint", dtype=torch.float32)


def test_embeddings_layers_shuffle_and_projector_give_the_values_of_upstream(vita):
    t, tower = case("vision"), vita.vision
    pixels = case("pool")["images"][t["images_index"]]
    with torch.no_grad():
        x = tower.embeddings(pixels)
        assert off(x, t["hidden_states"][0]) < BOUND
        for layer, want in zip(tower.encoder.layers, t["hidden_states"][1:], strict=True):
            x = layer(x)
            assert off(x, want) < BOUND
        assert off(x[:, 1:], t["selected"]) < BOUND  # quirk: no norm after the last layer
        assert off(tower(pixels), t["shuffled"]) < BOUND
        assert off(vita.projector(tower(pixels)), t["projected"]) < BOUND
        assert off(vita.encode_images(pixels), t["projected"]) < BOUND


def test_positions_of_an_image_of_another_size_are_interpolated_as_upstream_does(vita):
    t = case("vision_other_size")
    with torch.no_grad():
        assert off(vita.vision.embeddings(t["pixel_values"]), t["embeddings"]) < BOUND
        assert off(vita.encode_images(t["pixel_values"]), t["projected"]) < BOUND


def test_the_pixel_shuffle_is_exactly_that_of_upstream():
    t = case("pixel_shuffle")
    assert pixel_shuffle(t["x"], 2).equal(t["y"])


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_a_shuffled_position_has_the_channels_of_its_neighbours_in_row_order(n, rows, columns, factor, c):
    x = torch.arange(n * rows * columns * factor**2 * c).view(n, rows * factor, columns * factor, c)
    got = pixel_shuffle(x, factor)
    assert got.shape == (n, rows, columns, factor**2 * c)
    for i in range(n):
        for row in range(rows):
            for column in range(columns):
                square = x[i, row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
                assert got[i, row, column].tolist() == square.flatten().tolist()


def test_a_grid_that_the_shuffle_factor_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="3 x 4.*2"):
        pixel_shuffle(torch.zeros(1, 3, 4, 5), 2)


def slow_layer(layer, x, config):
    """One layer, a head at a time, in float64."""
    layer, x = copy.deepcopy(layer).double(), x.double()

    def normed(x, norm):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return centred / spread * norm.weight + norm.bias

    width, heads = x.shape[2], config.num_attention_heads
    size, y, outputs = width // heads, normed(x, layer.norm1), []
    weight, bias = layer.attn.qkv.weight, layer.attn.qkv.bias if config.qkv_bias else torch.zeros(3 * width).double()
    q, k, v = (y @ weight[i : i + width].T + bias[i : i + width] for i in (0, width, 2 * width))
    for i in range(0, width, size):
        head = slice(i, i + size)
        weights = (q[..., head] @ k[..., head].mT / math.sqrt(size)).softmax(-1)
        outputs.append(weights @ v[..., head])
    x = x + layer.attn.proj(torch.cat(outputs, -1)) * layer.ls1
    y = layer.mlp.fc1(normed(x, layer.norm2))
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))  # the exact GELU
    return x + layer.mlp.fc2(y) * layer.ls2


@few
@given(st.integers(1, 3), st.integers(2, 5), st.sampled_from([1e-6, 0.3]), st.booleans(), seeds)
def test_a_layer_is_the_formula_computed_head_by_head(heads, size, eps, bias, seed):
    config = VisionConfig(heads * size, 17, 1, heads, layer_norm_eps=eps, qkv_bias=bias)
    layer = randomised(VisionLayer(config), seed)
    x = noise(2, 7, heads * size, seed=seed)
    assert off(layer(x), slow_layer(layer, x, config)) < 1e-4


@few
@given(st.integers(1, 3), st.integers(2, 5), seeds)
def test_the_attention_core_shows_the_weights_that_multiply_v_and_changes_only_the_rounding(heads, size, seed):
    attention = randomised(VisionAttention(VisionConfig(heads * size, 17, 1, heads)), seed)
    x, calls = noise(2, 7, heads * size, seed=seed), []
    fused = attention(x)
    ask = attention.core.register_forward_pre_hook(lambda core, args: (*args, True))
    attention.core.register_forward_hook(lambda core, args, result: calls.append((args, result)))
    assert off(attention(x), fused) < 1e-5
    (q, k, v, _), (out, weights) = calls.pop()
    assert weights.shape == (2, heads, 7, 7)
    assert off((q @ k.mT / math.sqrt(size)).softmax(-1), weights) < 1e-5
    assert (weights @ v).equal(out)
    ask.remove()
    attention(x)
    assert calls.pop()[1][1] is None


def test_the_attention_core_uses_the_k_and_v_that_a_hook_sees():
    attention, x = randomised(VisionAttention(TINY)), noise(2, 7, 12)
    v = attention.qkv(x)[..., 24:]
    hook = attention.core.register_forward_pre_hook(lambda core, args: (args[0], torch.zeros_like(args[1]), args[2]))
    assert off(attention(x), attention.proj(v.mean(1, keepdim=True)).expand(2, 7, 12)) < 1e-5  # equal weights
    hook.remove()
    attention.core.register_forward_pre_hook(lambda core, args: (args[0], args[1], torch.zeros_like(args[2])))
    assert off(attention(x), attention.proj.bias.expand(2, 7, 12)) == 0


def test_layer_scales_of_zero_make_a_layer_the_identity():
    layer = randomised(VisionLayer(TINY))
    x = noise(2, 7, 12)
    layer.ls1.zero_()
    layer.ls2.zero_()
    assert layer(x).equal(x)


@few
@given(st.booleans(), st.sampled_from([1, 2]), st.integers(1, 3), st.integers(2, 4), seeds)
def test_a_tile_gives_the_configured_number_of_rows_independent_of_other_tiles(keep, shuffle, n, grid, seed):
    keep = keep and shuffle == 1
    side = 3 * shuffle * grid
    config = replace(TINY, image_size=side, patch_size=3, shuffle=shuffle, keep_class_token=keep)
    tower = randomised(VisionTower(config), seed)
    pixels = noise(n, 3, side, side, seed=seed)
    got = tower(pixels)
    assert got.shape == (n, config.num_positions, config.feature_size)
    for tile, want in zip(pixels, got):
        assert off(tower(tile[None])[0], want) < 1e-4
    assert randomised(Projector(config.feature_size, 10))(got).shape == (n, config.num_positions, 10)


def test_keep_class_token_does_not_change_the_features_of_the_patches():
    kept, dropped = (randomised(VisionTower(replace(TINY, shuffle=1, keep_class_token=k))) for k in (True, False))
    pixels = noise(2, 3, 28, 28, seed=1)
    assert kept(pixels)[:, 1:].equal(dropped(pixels))


def test_features_are_halved_as_in_vita_1_5():  # quirk
    assert VitaConfig.preset("vita-1.5").vision.feature_scale == TINY.feature_scale == 0.5
    halved, unscaled = (randomised(VisionTower(replace(TINY, feature_scale=scale))) for scale in (0.5, 1.0))
    pixels = noise(2, 3, 28, 28, seed=1)
    assert halved(pixels).equal(unscaled(pixels) / 2)


def test_patches_are_in_row_order_and_each_has_its_own_position():
    embeddings = randomised(VisionTower(TINY)).embeddings
    embeddings.position_embedding.copy_(torch.arange(17.0)[None, :, None].expand(1, 17, 12))  # position i is i
    embeddings.class_embedding.zero_()
    embeddings.patch_embedding.weight.fill_(1 / (3 * 7 * 7))  # the mean of a patch
    embeddings.patch_embedding.bias.zero_()
    levels = 100 * torch.arange(16.0).view(1, 1, 4, 4)
    pixels = levels.repeat_interleave(7, 2).repeat_interleave(7, 3).expand(1, 3, 28, 28)
    want = torch.tensor([0.0, *(100 * i + i + 1 for i in range(16))])
    assert off(embeddings(pixels)[0, :, 0], want) < 1e-2


def test_the_rows_and_columns_of_an_image_that_is_not_square_are_not_mixed():
    tower = randomised(VisionTower(TINY))
    rows = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 12)  # the position of a patch is its row
    tower.embeddings.position_embedding[0, 1:] = rows.reshape(16, 12)
    positions = tower.embeddings.positions(2, 6)[0, 1:].unflatten(0, (2, 6))
    assert off(positions, positions[:, :1].expand(2, 6, 12)) < 1e-5
    assert (positions[1] > positions[0] + 1).all()
    assert tower(torch.zeros(1, 3, 14, 42)).shape == (1, 3, 48)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@pytest.mark.parametrize("side", [28, 42])
def test_half_precision_is_near_float32(dtype, bound, side):
    half = randomised(VisionTower(TINY)).to(dtype)
    pixels = noise(2, 3, side, side, seed=2).to(dtype)
    got, want = half(pixels), copy.deepcopy(half).float()(pixels.float())
    assert got.dtype == dtype and (got.float() - want).norm() / want.norm() < bound


@pytest.mark.parametrize(("name", "positions"), [("documented", 1025), ("vita-1.5", 256)])
def test_the_presets_give_the_full_number_of_positions_on_the_meta_device(name, positions):
    config = VitaConfig.preset(name)
    with torch.device("meta"):
        tower = VisionTower(config.vision)
        projector = Projector(config.vision.feature_size, config.decoder.hidden_size)
        rows = projector(tower(torch.empty(3, 3, 448, 448)))
    assert rows.shape == (3, positions, config.decoder.hidden_size)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 28, 28), "pixels must be .N, 3, height, width., got .3, 28, 28."),
        ((1, 4, 28, 28), "pixels must be .N, 3, height, width., got .1, 4, 28, 28."),
        ((1, 3, 30, 28), "multiples of 7, got .1, 3, 30, 28."),
        ((1, 3, 28, 31), "multiples of 7, got .1, 3, 28, 31."),
        ((1, 3, 28, 35), "4 x 5 patches cannot be shuffled by 2"),
    ],
)
def test_pixels_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        randomised(VisionTower(TINY))(torch.zeros(shape))


@few
@given(st.integers(2, 9), st.integers(1, 3), st.integers(1, 3), seeds)
def test_a_tower_whose_image_is_one_patch_takes_that_image_and_larger_ones(patch, rows, columns, seed):
    """Its table has one position, which every patch of a larger image gets."""
    tower = randomised(VisionTower(replace(TINY, image_size=patch, patch_size=patch, shuffle=1)), seed)
    assert tower.embeddings.position_embedding.shape[1] == 2
    assert tower(noise(1, 3, patch, patch, seed=seed)).shape == (1, 1, 12)
    positions = tower.embeddings.positions(rows, columns)
    assert positions.shape == (1, rows * columns + 1, 12)
    assert off(positions[:, 1:], tower.embeddings.position_embedding[:, 1:].expand(1, rows * columns, 12)) < BOUND
