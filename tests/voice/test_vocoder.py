"""The vocoder: golden values, the generator written out, its context; splitting and stretching of sound."""

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
from vita_ref.voice.vocoder import (
    Vocoder,
    fold_weight_norm,
    most_similar,
    split_quiet,
    stretch,
    trim_context,
)

SPEECH = GOLDEN / "tts"
CONFIG = CodecConfig(
    n_codes=11,
    global_tokens=(3, 0, 10, 7),
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(5, 6),
    upsample_initial_channel=256,  # so the first stage has 128 channels, as many as the voice embedding
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    sampling_rate=1200,
)
WITHOUT_VOICE = CodecConfig(7, (1, 2), (4,), (4,), 20, (7,), ((1, 3, 5),))  # no stage has 128 channels
THREE_STAGES = CodecConfig(7, (1,), (2, 5, 3), (2, 11, 9), 48, (3, 1, 11), ((1, 2, 4), (1, 1, 1), (1, 3, 5)))
CONFIGS = st.sampled_from([CONFIG, WITHOUT_VOICE, THREE_STAGES])


def build(config, seed=0):
    """A small vocoder with random weights whose sound has an amplitude of 0.1 to 1."""
    torch.manual_seed(seed)
    vocoder = Vocoder(config).eval().requires_grad_(False)
    for parameter in vocoder.generator.parameters():
        parameter *= 1.5
    return vocoder


def random_codes(config, n, seed=0):
    return torch.randint(0, config.n_codes, (1, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def golden():
    return Speech.from_pretrained(SPEECH).codec


# ---- tokens to sound


def test_golden_embeddings_and_waveform(golden):
    t = case("codec")
    quantizer = golden.quantizer
    assert torch.equal(quantizer.embed_tokens(t["tokens"]), t["quantized"])
    assert torch.equal(quantizer.embed_voice(t["global_tokens"].flatten()), t["global_embedding"].flatten()[None])
    torch.testing.assert_close(golden(t["tokens"]), t["waveform"][:, 0], atol=1e-6, rtol=0)


def leaky_relu(x):
    return torch.where(x > 0, x, x * 0.1)  # quirk: 0.1 before conv_post too


def slow_vocoder(vocoder, tokens):
    """Tokens to sound with functions instead of modules, and without context."""
    config, parameters = vocoder.config, dict(vocoder.named_parameters())

    def weights(name):
        return parameters[f"generator.{name}.weight"], parameters[f"generator.{name}.bias"]

    def block(x, i, dilations):
        for j, dilation in enumerate(dilations):
            y = F.conv1d(leaky_relu(x), *weights(f"resblocks.{i}.convs1.{j}"), dilation=dilation, padding="same")
            x = x + F.conv1d(leaky_relu(y), *weights(f"resblocks.{i}.convs2.{j}"), padding="same")
        return x

    voice = torch.cat(
        [
            parameters[f"quantizer.quantizer_modules_globaltokens.{i}.embedding.weight"][token]
            for i, token in enumerate(config.global_tokens)
        ]
    )
    x = parameters["quantizer.quantizer_modules.0.embedding.weight"][tokens[0]].T[None]
    x = F.conv1d(x, *weights("conv_pre"), padding=3)
    blocks = len(config.resblock_kernel_sizes)
    for stage, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernel_sizes)):
        x = F.conv_transpose1d(leaky_relu(x), *weights(f"ups.{stage}"), stride=rate, padding=(kernel - rate) // 2)
        x = sum(block(x, blocks * stage + i, d) for i, d in enumerate(config.resblock_dilation_sizes)) / blocks
        if x.shape[1] == 128:
            x = x + voice[None, :, None]  # quirk: after the division, so the voice is not divided
    return torch.tanh(F.conv1d(leaky_relu(x), *weights("conv_post"), padding=3))[:, 0]


@settings(deadline=None, max_examples=8)
@given(config=CONFIGS, n=st.integers(1, 12))
def test_the_vocoder_equals_its_convolutions_written_out(config, n):
    vocoder, tokens = build(config), random_codes(config, n)
    torch.testing.assert_close(vocoder(tokens), slow_vocoder(vocoder, tokens), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=12)
@given(config=CONFIGS, n=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_each_token_becomes_hop_samples_between_minus_one_and_one(config, n, seed):
    sound = build(config, seed)(random_codes(config, n, seed))
    assert sound.shape == (1, n * config.hop) and sound.dtype == torch.float32
    assert sound.abs().max() <= 1 and sound.std() > 0


def test_no_tokens_give_no_samples():
    assert build(CONFIG)(torch.zeros(1, 0, dtype=torch.long)).shape == (1, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_sound_in_float32(dtype):
    vocoder, tokens = build(CONFIG), random_codes(CONFIG, 6)
    expected = vocoder(tokens)
    sound = vocoder.to(dtype)(tokens)
    assert sound.dtype == torch.float32
    torch.testing.assert_close(sound, expected, atol=0.05, rtol=0)


# ---- context


@settings(deadline=None, max_examples=12)
@given(config=CONFIGS, data=st.data())
def test_a_token_influences_only_the_samples_within_the_receptive_radius(config, data):
    vocoder = build(config)
    n = 2 * vocoder.receptive_radius + 4
    place = data.draw(st.integers(0, n - 1))
    tokens = random_codes(config, n)
    changed = tokens.clone()
    changed[0, place] = (changed[0, place] + 1) % config.n_codes
    difference = (vocoder(tokens) - vocoder(changed))[0].abs().view(n, config.hop).amax(1)  # by token
    outside = (torch.arange(n) - place).abs() > vocoder.receptive_radius
    assert difference[place] > 0 and not difference[outside].any()


@settings(deadline=None, max_examples=15)
@given(config=CONFIGS, data=st.data())
def test_a_part_with_the_receptive_radius_as_context_sounds_as_in_the_whole(config, data):
    vocoder = build(config)
    radius = vocoder.receptive_radius
    n = data.draw(st.integers(1, 3 * radius))
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    first, last = max(0, start - radius), min(n, stop + radius)
    tokens = random_codes(config, n)
    part = vocoder(tokens[:, first:last], context=(start - first, last - stop))
    whole = vocoder(tokens)[:, start * config.hop : stop * config.hop]
    torch.testing.assert_close(part, whole, atol=1e-6, rtol=0)


def test_less_context_than_the_receptive_radius_changes_the_sound():
    vocoder = build(CONFIG)
    radius = vocoder.receptive_radius
    tokens, n = random_codes(CONFIG, 4 * radius), 2 * radius
    whole = vocoder(tokens)[:, : n * CONFIG.hop]

    def error(context):
        return (vocoder(tokens[:, : n + context], context=(0, context)) - whole).abs().max()

    assert error(radius) < 1e-6 < error(radius - 2)


def test_context_is_trimmed_to_the_margin_at_both_ends():
    x = torch.arange(10.0).view(1, 1, 10)
    rest, context = trim_context(x, (4, 1), 2)
    assert rest.flatten().tolist() == [2, 3, 4, 5, 6, 7, 8, 9] and context == [2, 1]


# ---- the voice


def test_the_voice_changes_the_sound_and_defaults_to_that_of_the_config():
    vocoder, tokens = build(CONFIG), random_codes(CONFIG, 6)
    assert torch.equal(vocoder(tokens), vocoder(tokens, CONFIG.global_tokens))
    assert not torch.allclose(vocoder(tokens), vocoder(tokens, [3, 0, 10, 8]), atol=1e-4)


def test_the_voice_changes_nothing_if_no_stage_has_its_width():
    vocoder, tokens = build(WITHOUT_VOICE), random_codes(WITHOUT_VOICE, 6)
    assert torch.equal(vocoder(tokens), vocoder(tokens, [5, 6]))


@pytest.mark.parametrize(
    "voice, message",
    [
        ("low", "4 global tokens, got 'low'"),
        ([1, 2, 3], "4 global tokens, got 3"),
        ([1, 2, 3, 11], "voice must be codes from 0 to 10, got 1 to 11"),
    ],
)
def test_a_voice_of_another_type_or_length_or_range_is_refused(voice, message):
    with pytest.raises(ValueError, match=message):
        build(CONFIG)(random_codes(CONFIG, 2), voice)


@pytest.mark.parametrize("token", [-1, 11])
def test_a_token_outside_the_code_book_is_refused(token):
    with pytest.raises(ValueError, match="tokens must be codes from 0 to 10"):
        build(CONFIG)(torch.tensor([[1, token]]))


# ---- files


@pytest.mark.parametrize("layer", [torch.nn.Conv1d(3, 5, 4), torch.nn.ConvTranspose1d(5, 3, 4)])
def test_folding_gives_the_weight_of_torchs_weight_norm(layer):
    layer = torch.nn.utils.parametrizations.weight_norm(layer)
    g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    g.data.uniform_(-2, 2)
    folded = fold_weight_norm({"up.weight_g": g, "up.weight_v": v, "up.bias": layer.bias})
    assert set(folded) == {"up.weight", "up.bias"}
    torch.testing.assert_close(folded["up.weight"], layer.weight)


def test_a_weight_norm_of_another_axis_is_refused():
    with pytest.raises(ValueError, match=r"w.weight_g must be \[n, 1, 1\]"):
        fold_weight_norm({"w.weight_g": torch.ones(1, 3, 1), "w.weight_v": torch.ones(2, 3, 4)})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resblock": "2"}, "resblock '2'"),
        ({"n_code_groups": 4}, "n_code_groups 4"),
        ({"global_tokens": [1, 2]}, "2 global_tokens, expected 8"),
        ({"upsample_kernel_sizes": [3, 5, 11, 9]}, "kernel 11"),
        ({"n_codes": None}, "n_codes"),
    ],
)
def test_a_codec_config_that_is_not_supported_is_refused(tmp_path, change, message):
    raw = json.loads((SPEECH / "codec/model.json").read_text()) | change
    (tmp_path / "model.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))
    with pytest.raises(ValueError, match=message):
        read_codec_config(tmp_path / "model.json")


# ---- splitting


@pytest.mark.parametrize("row", json.loads((SPEECH / "cases/cases.json").read_text())["find_min"]["table"])
def test_golden_splits(golden, row):
    sound = golden(case("find_min")["tokens"])[0]
    piece, pending = split_quiet(sound[:500], sound[row["start"] : row["stop"]], row["N"], row["threshold"])
    assert len(pending) == row["buffer_len_out"]
    assert (None if piece is None else len(piece)) == row["syn_len_out"]


def slow_split(sound, window, threshold):
    """Where a sound is split, or None: every window from the centred one on is tried."""
    first = len(sound) // 2 - window // 2
    if len(sound) < window:
        return None
    means = {i: float(sound[i : i + window].abs().double().mean()) for i in range(first, len(sound) - window + 1)}
    start = min(means, key=means.get)
    if means[start] >= threshold:
        return None
    length = window + (start - first)  # quirk: longer than the window
    return min(range(start, min(len(sound), start + length)), key=lambda i: abs(sound[i]))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    pending=st.integers(0, 30),
    length=st.integers(1, 200),
    window=st.integers(1, 90),
    threshold=st.floats(0, 1),
)
def test_a_split_is_where_the_slow_search_finds_it(seed, pending, length, window, threshold):
    noise = torch.randn(pending + length, generator=torch.Generator().manual_seed(seed))
    piece, rest = split_quiet(noise[:pending], noise[pending:], window, threshold)
    place = slow_split(noise[pending:], window, threshold)
    if place is None:
        assert piece is None and torch.equal(rest, noise)
    else:
        assert torch.equal(piece, noise[: pending + place]) and torch.equal(rest, noise[pending + place :])


def test_the_split_may_lie_behind_the_quietest_window():
    sound = torch.full((200,), 0.5)
    sound[150:160] = 0.1  # the quietest window of 10; the first one starts at 95, so 55 samples more are searched
    sound[175] = 0.0
    piece, _ = split_quiet(torch.zeros(0), sound, 10, 0.2)
    assert len(piece) == 175  # quirk


# ---- stretching


def sine(length, hertz):
    return torch.sin(torch.arange(length) * hertz * 2 * torch.pi / 24000)


def pitch(sound):
    """The strongest frequency in hertz."""
    return int(torch.fft.rfft(sound * torch.hann_window(len(sound)), 24000).abs().argmax())


@settings(deadline=None, max_examples=8)
@given(speed=st.floats(0.5, 2.0), hertz=st.floats(80, 2000), length=st.integers(20000, 40000))
def test_stretching_changes_the_length_and_keeps_pitch_and_loudness(speed, hertz, length):
    sound = 0.5 * sine(length, hertz)
    stretched = stretch(sound, speed)
    assert len(stretched) == round(length / speed)
    middle = stretched[len(stretched) // 4 : -len(stretched) // 4]
    assert abs(pitch(middle) - hertz) <= 5
    assert abs(middle.square().mean().sqrt() / sound.square().mean().sqrt() - 1) < 0.05


def test_stretching_keeps_the_order_of_sounds():
    stretched = stretch(torch.cat([sine(12000, 200), sine(12000, 900)]), 1.5)
    assert abs(pitch(stretched[:7000]) - 200) <= 10
    assert abs(pitch(stretched[9000:]) - 900) <= 10


def test_a_frame_continues_where_the_sound_is_most_similar_and_not_where_it_is_loudest():
    frame, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    candidates = torch.zeros(400)
    candidates[40:140] = frame
    candidates[250:350] = 10 * (frame + noise)
    assert most_similar(candidates, frame) == 40


@pytest.mark.parametrize("speed", [0.5, 0.9, 2.0])
@pytest.mark.parametrize("length", [0, 1, 700])
def test_short_sounds_can_be_stretched(length, speed):
    stretched = stretch(torch.ones(length), speed)
    assert len(stretched) == round(length / speed) and torch.isfinite(stretched).all()


def test_a_speed_of_one_returns_the_sound_itself():
    sound = torch.randn(5000)
    assert stretch(sound, 1.0) is sound


@pytest.mark.parametrize("speed", [0.49, 2.01, float("nan")])
def test_a_speed_out_of_range_is_refused(speed):
    with pytest.raises(ValueError, match="speed must be 0.5 to 2.0"):
        stretch(torch.randn(5000), speed)
