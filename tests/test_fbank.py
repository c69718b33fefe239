"""The filter bank against Kaldi's definition, golden data and properties. Run: ``pytest tests/test_fbank.py``"""

import io
import math

import numpy as np
import pytest
import soundfile
import torch
from conftest import case
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_ref.fbank import FLOOR, FRAME_BLOCK, load_sound, log_mel

RATE = 16000


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8


def tone(hertz, rate, seconds=0.5):
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate)[None]


def mel(hertz):
    return 1127 * math.log(1 + hertz / 700)


def slow_log_mel(samples, bins, size, shift):
    """Frame by frame in float64, with the Fourier transform written out."""
    fft = 2 ** math.ceil(math.log2(size))
    step = (mel(RATE / 2) - mel(20)) / (bins + 1)
    window = (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(size) / (size - 1))) ** 0.85
    waves = np.exp(-2j * math.pi * np.outer(np.arange(fft // 2), np.arange(size)) / fft)
    rows = []
    for start in range(0, len(samples) - size + 1, shift):
        x = samples[start : start + size].astype(np.float64) * 32768
        x = x - x.mean()
        x = np.array([x[i] - 0.97 * x[max(i - 1, 0)] for i in range(size)]) * window
        power = abs(waves @ x) ** 2
        row = []
        for b in range(bins):
            left, centre, right = (mel(20) + (b + i) * step for i in range(3))
            energy = 0.0
            for z, p in enumerate(power):
                m = mel(z * RATE / fft)
                energy += p * max(0, min((m - left) / (centre - left), (right - m) / (right - centre)))
            row.append(math.log(max(energy, 1.1920929e-07)))
        rows.append(row)
    return torch.tensor(rows)


@settings(deadline=None, max_examples=8)
@given(
    bins=st.sampled_from([7, 13]),
    length=st.sampled_from([8.0, 25.0]),
    shift=st.sampled_from([5.0, 10.0]),
    samples=st.integers(400, 900),
    seed=st.integers(0, 99),
)
def test_the_filter_bank_is_kaldis_definition(bins, length, shift, samples, seed):
    x = noise(1, samples, seed=seed)
    got = log_mel(x, RATE, num_mel_bins=bins, frame_length=length, frame_shift=shift)
    want = slow_log_mel(x[0].numpy(), bins, int(length * 16), int(shift * 16))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["fbank", "fbank_quiet", "fbank_stereo"])
def test_the_filter_bank_is_that_of_upstream(name):
    t = case(name)
    torch.testing.assert_close(log_mel(t["waveform"], int(t["sample_rate"])), t["fbank"], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name, bins, near, exact", [("fbank_24k", 70, 0.04, 2e-3), ("fbank_8k", 52, 0.06, 2e-2)])
def test_the_filter_bank_of_another_sample_rate_is_near_that_of_upstream(name, bins, near, exact):
    t = case(name)  # another resampler than ours made it; they differ in the highest bins only
    got = log_mel(t["waveform"], int(t["sample_rate"]))
    assert got.shape == t["fbank"].shape
    torch.testing.assert_close(got[:, :bins], t["fbank"][:, :bins], atol=near, rtol=0)
    torch.testing.assert_close(log_mel(t["resampled"], RATE), t["fbank"], atol=exact, rtol=0)


@settings(deadline=None, max_examples=20)
@given(samples=st.integers(0, 3000))
def test_each_whole_frame_gives_a_row(samples):
    rows = sum(1 for start in range(0, samples, 160) if start + 400 <= samples)
    got = log_mel(noise(1, samples), RATE)
    assert got.shape == (rows, 80) and got.dtype == torch.float32


@settings(deadline=None, max_examples=10)
@given(samples=st.integers(400, 5000), extra=st.integers(160, 2000))
def test_a_longer_recording_adds_rows_and_does_not_change_the_first_ones(samples, extra):
    longer = noise(1, samples + extra)
    start, whole = log_mel(longer[:, :samples], RATE), log_mel(longer, RATE)
    assert 1 <= len(start) < len(whole)
    torch.testing.assert_close(whole[: len(start)], start, atol=1e-4, rtol=0)


def test_frames_at_the_border_of_two_blocks_are_those_of_a_single_block():
    x = noise(1, (FRAME_BLOCK + 3) * 160)
    start = FRAME_BLOCK - 5
    one_block, two_blocks = log_mel(x[:, start * 160 :], RATE), log_mel(x, RATE)
    assert len(two_blocks) > FRAME_BLOCK and len(one_block) > 5
    torch.testing.assert_close(two_blocks[start:], one_block, atol=1e-4, rtol=0)


def test_only_the_first_channel_is_used():  # quirk
    x = noise(3, 2000)
    assert torch.equal(log_mel(x, RATE), log_mel(x[:1], RATE))
    assert not torch.equal(log_mel(x, RATE), log_mel(x.mean(0, keepdim=True), RATE))


def test_silence_and_a_constant_give_the_logarithm_of_the_floor():
    want = torch.full((8, 80), math.log(FLOOR))
    torch.testing.assert_close(log_mel(torch.zeros(1, 1600), RATE), want)
    torch.testing.assert_close(log_mel(torch.full((1, 1600), 0.25), RATE), want)


def test_twice_the_amplitude_adds_the_same_to_every_bin():
    x = noise(1, 4000) / 2
    added = log_mel(2 * x, RATE) - log_mel(x, RATE)
    torch.testing.assert_close(added, torch.full((23, 80), 2 * math.log(2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_a_tone_is_loudest_in_the_bin_of_its_frequency_at_any_sample_rate(rate):
    for hertz in (300, 1000, 2500):
        own = (mel(hertz) - mel(20)) / (mel(8000) - mel(20)) * 81 - 1
        loudest = log_mel(tone(hertz, rate), rate)[5:-5].argmax(1)
        assert ((loudest - own).abs() < 1).all()
        assert len(loudest) == 38  # of half a second, without five frames at either end


@pytest.mark.parametrize(
    "bad, rate",
    [
        (torch.zeros(400), RATE),
        (torch.zeros(1, 400, dtype=torch.int16), RATE),
        (torch.zeros(0, 400), RATE),
        (torch.zeros(1, 400), 0),
    ],
)
def test_other_shapes_and_dtypes_than_those_of_a_waveform_are_refused(bad, rate):
    with pytest.raises(ValueError, match="must be"):
        log_mel(bad, rate)


@pytest.mark.parametrize("kind, atol", [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.1), ("mp3", 0.1)])
def test_a_file_is_read_by_path_and_from_memory(tmp_path, kind, atol):
    rate, path = 24000, tmp_path / f"sound.{kind}"
    samples = torch.cat([tone(440, rate), tone(990, rate)]).float()
    soundfile.write(path, samples.T.numpy(), rate)
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        got, got_rate = load_sound(source)
        assert got_rate == rate and got.dtype == torch.float32 and got.is_contiguous()
        assert got.shape[0] == 2 and got.shape[1] >= samples.shape[1]
        torch.testing.assert_close(got[:, 2000:10000], samples[:, 2000:10000], atol=atol, rtol=0)


def test_a_file_that_cannot_be_read_gives_one_line_with_its_name_and_the_reason(tmp_path):
    broken, raw, empty = tmp_path / "broken.wav", tmp_path / "sound.raw", tmp_path / "empty.wav"
    broken.write_bytes(b"RIFF and nothing after it")
    raw.write_bytes(bytes(800))
    soundfile.write(empty, np.zeros((0, 1)), RATE)
    cases = [
        (tmp_path / "none.wav", "no such sound file"),
        (tmp_path, "no such sound file"),
        (broken, "as wav, flac, ogg or mp3"),
        (raw, "as wav, flac, ogg or mp3"),
        (io.BytesIO(b"text"), "as wav, flac, ogg or mp3"),
        (empty, "no samples"),
    ]
    for source, reason in cases:
        name = "the given sound" if isinstance(source, io.BytesIO) else str(source)
        with pytest.raises(ValueError, match=reason) as error:
            load_sound(source)
        assert str(error.value).startswith(f"cannot read {name}") and "\n" not in str(error.value)
