"""The vocoder against golden data and a slow version of itself; cutting and stretching against their laws."""

import json

import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vita_ref.config import CodecConfig
from vita_ref.files.speech import read_codec_config
from vita_ref.speech import Speech
from vita_ref.voice.vocoder import Vocoder, cut, fold_weight_norm, stretch

SPEECH = GOLDEN / "tts"
CONFIG = CodecConfig(
    n_codes=11,
    global_tokens=(3, 0, 10, 7),
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(5, 6),
    upsample_initial_channel=256,  # so that the first stage is as wide as the voice
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    sampling_rate=1200,
)
LAYOUTS = st.sampled_from(
    [
        CONFIG,
        CodecConfig(7, (1, 2), (4,), (4,), 20, (7,), ((1, 3, 5),)),
        CodecConfig(7, (1,), (2, 5, 3), (2, 11, 9), 48, (3, 1, 11), ((1, 2, 4), (1, 1, 1), (1, 3, 5))),
    ]
)


def build(config, seed=0):
    """A small vocoder with random weights that make a sound of amplitude 0.1 to 1."""
    torch.manual_seed(seed)
    vocoder = Vocoder(config).eval().requires_grad_(False)
    for parameter in vocoder.generator.parameters():
        parameter *= 1.5
    return vocoder


def codes(config, n, seed=0):
    return torch.randint(0, config.n_codes, (1, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden():
    return Speech.from_pretrained(SPEECH).codec


def test_golden_waveform_and_the_steps_on_the_way(golden):
    t = case("codec")
    books = golden.quantizer
    assert torch.equal(books.columns(t["tokens"]), t["quantized"])
    assert torch.equal(books.voice(t["global_tokens"].flatten()), t["global_embedding"].flatten()[None])
    torch.testing.assert_close(golden(t["tokens"]), t["waveform"][:, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("row", json.loads((SPEECH / "cases/cases.json").read_text())["find_min"]["table"])
def test_golden_cuts(golden, row):
    sound = golden(case("find_min")["tokens"])[0]
    piece, held = cut(sound[:500], sound[row["start"] : row["stop"]], row["N"], row["threshold"])
    assert len(held) == row["buffer_len_out"]
    assert (None if piece is None else len(piece)) == row["syn_len_out"]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 200), st.integers(1, 90), st.floats(0, 1))
def test_a_cut_is_where_the_slow_search_finds_it(seed, before, length, window, threshold):
    noise = torch.randn(before + length, generator=torch.Generator().manual_seed(seed))
    held, sound = noise[:before], noise[before:]
    piece, rest = cut(held, sound, window, threshold)
    assert torch.equal(torch.cat([held[:0] if piece is None else piece, rest]), noise)

    mid = length // 2 - window // 2
    means = {i: float(sound[i : i + window].abs().double().mean()) for i in range(mid, length - window + 1)}
    if length < window or min(means.values()) >= threshold:
        assert piece is None
        return
    at = min(means, key=means.get)
    searched = range(at, min(length, at + (at - mid) + window))  # quirk: longer than the window by (at - mid)
    assert len(piece) == before + min(searched, key=lambda i: abs(sound[i]))


def test_the_cut_may_lie_behind_the_quietest_window():
    sound = torch.full((200,), 0.5)
    sound[150:160], sound[175] = 0.1, 0.0  # the quietest window of 10 begins at 150, 55 behind the first one
    assert len(cut(torch.zeros(0), sound, 10, 0.2)[0]) == 175


@settings(deadline=None, max_examples=12)
@given(LAYOUTS, st.integers(1, 9), st.integers(0, 2**32))
def test_each_token_becomes_hop_samples_between_minus_one_and_one(config, n, seed):
    sound = build(config, seed)(codes(config, n, seed))
    assert sound.shape == (1, n * config.hop) and sound.dtype == torch.float32
    assert sound.abs().max() <= 1 and sound.std() > 0


@settings(deadline=None, max_examples=12)
@given(LAYOUTS, st.data())
def test_a_token_touches_the_samples_within_its_reach_and_no_others(config, data):
    vocoder = build(config)
    n = 2 * vocoder.reach + 4
    at = data.draw(st.integers(0, n - 1))
    tokens = codes(config, n)
    other = tokens.clone()
    other[0, at] = (other[0, at] + 1) % config.n_codes
    apart = (vocoder(tokens) - vocoder(other))[0].abs().view(n, config.hop).amax(1)
    touched = [abs(i - at) <= vocoder.reach for i in range(n)]
    assert not apart[~torch.tensor(touched)].any() and apart[at] > 0


@settings(deadline=None, max_examples=15)
@given(LAYOUTS, st.data())
def test_a_part_with_its_reach_as_context_sounds_as_in_the_whole(config, data):
    vocoder = build(config)
    n = data.draw(st.integers(1, 3 * vocoder.reach))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    first, last = max(0, start - vocoder.reach), min(n, stop + vocoder.reach)
    tokens = codes(config, n)
    part = vocoder(tokens[:, first:last], context=(start - first, last - stop))
    whole = vocoder(tokens)[:, start * config.hop : stop * config.hop]
    torch.testing.assert_close(part, whole, atol=1e-6, rtol=0)


def test_one_token_less_of_context_may_be_heard():
    vocoder = build(CONFIG)
    tokens, n = codes(CONFIG, 4 * vocoder.reach), 2 * vocoder.reach
    whole = vocoder(tokens)[:, : n * CONFIG.hop]

    def miss(context):
        return (vocoder(tokens[:, : n + context], context=(0, context)) - whole).abs().max()

    assert miss(vocoder.reach) < 1e-6 < miss(vocoder.reach - 2)


def slow(vocoder, tokens):
    """The generator written out for a config of one block: no context, nothing shared with the code under test."""
    p = dict(vocoder.named_parameters())
    take = lambda name: (p[f"generator.{name}.weight"], p[f"generator.{name}.bias"])
    soft = lambda x: torch.where(x > 0, x, x * 0.1)  # quirk: 0.1 before conv_post too
    config, i = vocoder.config, 0
    x = F.conv1d(p["quantizer.quantizer_modules.0.embedding.weight"][tokens[0]].T[None], *take("conv_pre"), padding=3)
    voice = [
        p[f"quantizer.quantizer_modules_globaltokens.{b}.embedding.weight"][v]
        for b, v in enumerate(config.global_tokens)
    ]
    for s, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes)):
        x = F.conv_transpose1d(soft(x), *take(f"ups.{s}"), stride=rate, padding=(kernel - rate) // 2)
        total = 0
        for k, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes):
            y = x
            for j, d in enumerate(dilations):
                z = F.conv1d(soft(y), *take(f"resblocks.{i}.convs1.{j}"), dilation=d, padding="same")
                y = y + F.conv1d(soft(z), *take(f"resblocks.{i}.convs2.{j}"), padding="same")
            total, i = total + y, i + 1
        x = total / len(config.resblock_kernel_sizes)
        if x.shape[1] == 128:
            x = x + torch.cat(voice)[None, :, None]  # quirk: after the division, so at its full size
    return torch.tanh(F.conv1d(soft(x), *take("conv_post"), padding=3))[:, 0]


@settings(deadline=None, max_examples=8)
@given(LAYOUTS, st.integers(1, 12))
def test_the_generator_is_the_slow_one(config, n):
    vocoder, tokens = build(config), codes(config, n)
    torch.testing.assert_close(vocoder(tokens), slow(vocoder, tokens), atol=1e-6, rtol=0)


def test_another_voice_sounds_different_and_the_own_one_is_the_default():
    vocoder, tokens = build(CONFIG), codes(CONFIG, 6)
    assert torch.equal(vocoder(tokens), vocoder(tokens, CONFIG.global_tokens))
    assert not torch.allclose(vocoder(tokens), vocoder(tokens, [3, 0, 10, 8]), atol=1e-4)


def test_the_voice_is_not_heard_where_no_stage_has_its_width():
    config = CodecConfig(7, (1, 2), (4,), (4,), 20, (3,), ((1,),))
    vocoder, tokens = build(config), codes(config, 6)
    assert torch.equal(vocoder(tokens), vocoder(tokens, [5, 6]))


@pytest.mark.parametrize(
    "voice, told",
    [
        ("low", "4 global tokens, got .low."),
        ([1, 2, 3], "4 global tokens, got 3"),
        ([1, 2, 3, 11], "0 to 10, got 1 to 11"),
    ],
)
def test_a_voice_that_does_not_fit_is_refused(voice, told):
    with pytest.raises(ValueError, match=told):
        build(CONFIG)(codes(CONFIG, 2), voice)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_code_book_is_refused(token):
    with pytest.raises(ValueError, match="codes of 0 to 10"):
        build(CONFIG)(torch.tensor([[1, token]]))


def test_no_tokens_are_no_sound():
    assert build(CONFIG)(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    vocoder, tokens = build(CONFIG), codes(CONFIG, 6)
    want = vocoder(tokens)
    got = vocoder.to(dtype)(tokens)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=0.05, rtol=0)


def test_folding_is_what_torch_calls_weight_norm():
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.ConvTranspose1d(5, 3, 4))
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    g.data.uniform_(-2, 2)
    folded = fold_weight_norm({"up.weight_g": g, "up.weight_v": v, "up.bias": layer.bias})
    assert set(folded) == {"up.weight", "up.bias"}
    torch.testing.assert_close(folded["up.weight"], layer.weight)


def test_a_weight_norm_of_another_axis_is_refused():
    with pytest.raises(ValueError, match=r"w.weight_g must be \[n, 1, 1\]"):
        fold_weight_norm({"w.weight_g": torch.ones(1, 3, 1), "w.weight_v": torch.ones(2, 3, 4)})


@settings(deadline=None, max_examples=8)
@given(st.floats(0.5, 2.0), st.floats(80, 2000), st.integers(20000, 40000))
def test_stretching_changes_the_length_and_keeps_pitch_and_loudness(speed, pitch, length):
    sine = 0.5 * torch.sin(torch.arange(length) * pitch * 2 * torch.pi / 24000)
    out = stretch(sine, speed)
    assert len(out) == round(length / speed)
    middle = out[len(out) // 4 : -len(out) // 4]
    spectrum = torch.fft.rfft(middle * torch.hann_window(len(middle)), 24000).abs()
    assert abs(int(spectrum.argmax()) - pitch) <= 5
    assert abs(middle.square().mean().sqrt() / sine.square().mean().sqrt() - 1) < 0.05


def test_stretching_keeps_the_order_of_what_sounds():
    low, high = (torch.sin(torch.arange(12000) * f * 2 * torch.pi / 24000) for f in (200, 900))
    out = stretch(torch.cat([low, high]), 1.5)
    for part, pitch in ((out[:7000], 200), (out[9000:], 900)):
        assert abs(int(torch.fft.rfft(part, 24000).abs().argmax()) - pitch) <= 10


@pytest.mark.parametrize("speed", [0.5, 0.9, 2.0])
@pytest.mark.parametrize("length", [0, 1, 700])
def test_short_sounds_stretch_too(length, speed):
    out = stretch(torch.ones(length), speed)
    assert len(out) == round(length / speed) and torch.isfinite(out).all()


def test_speed_one_changes_nothing_and_others_are_refused():
    sound = torch.randn(5000)
    assert stretch(sound, 1.0) is sound
    for speed in (0.49, 2.01, float("nan")):
        with pytest.raises(ValueError, match="speed must be 0.5 to 2.0"):
            stretch(sound, speed)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"resblock": "2"}, "resblock '2'"),
        ({"n_code_groups": 4}, "n_code_groups 4"),
        ({"global_tokens": [1, 2]}, "2 global_tokens, expected 8"),
        ({"upsample_kernel_sizes": [3, 5, 11, 9]}, "kernel 11"),
        ({"n_codes": None}, "n_codes"),
    ],
)
def test_a_codec_that_is_not_supported_is_refused(tmp_path, change, told):
    raw = json.loads((SPEECH / "codec/model.json").read_text()) | change
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(ValueError, match=told):
        read_codec_config(tmp_path / "model.json")
