"""The filter bank against Kaldi's definition, golden data and properties. Run: ``pytest tests/test_fbank.py``"""

import io
import math
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import case
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_ref.fbank import BLOCK, FLOOR, load_sound, log_mel
from vita_ref.files import sounds
from vita_ref.files.media import MAX_RATE, MIN_RATE

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


@settings(deadline=None, max_examples=5)
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
@given(samples=st.integers(0, 3000) | st.builds(lambda n, more: 400 + 160 * n + more, st.integers(0, 15), st.integers(-1, 1)))
@example(399)
@example(400)
@example(401)
@example(560)
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


@pytest.mark.parametrize("times", [2, 3, 10, 25, 100])
def test_a_shift_of_n_times_10_ms_gives_every_nth_row(times):
    x = noise(1, 16000 * 3)
    got, want = log_mel(x, RATE, frame_shift=10.0 * times), log_mel(x, RATE)[::times]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [5.0, 50.0, 100.0, 1000.0])
def test_a_frame_has_as_many_samples_as_its_milliseconds_say(length):
    size = round(16 * length)
    assert [len(log_mel(noise(1, n), RATE, frame_length=length)) for n in (size - 1, size, size + 159, size + 160)] == [0, 1, 1, 2]


def test_only_another_sample_rate_needs_soxr(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert log_mel(noise(1, 800), RATE).shape == (3, 80)
    assert log_mel(noise(1, 800), 8000, target_rate=8000).shape == (8, 80)
    assert log_mel(noise(1, 0), 8000).shape == (0, 80)
    with pytest.raises(ValueError, match="resampling 8000 Hz to 16000 Hz needs soxr: pip install soxr"):
        log_mel(noise(1, 800), 8000)


def test_frames_at_the_border_of_two_blocks_are_those_of_a_single_block():
    block = BLOCK // 512
    x = noise(1, (block + 3) * 160)
    start = block - 5
    one_block, two_blocks = log_mel(x[:, start * 160 :], RATE), log_mel(x, RATE)
    assert len(two_blocks) > block and len(one_block) > 5
    torch.testing.assert_close(two_blocks[start:], one_block, atol=1e-4, rtol=0)


def test_long_frames_are_computed_in_smaller_blocks(monkeypatch):
    x, options = noise(1, 60 * 160), {"frame_length": 200.0}
    one_block = log_mel(x, RATE, **options)
    monkeypatch.setattr("vita_ref.fbank.BLOCK", 3 * 4096 + 5)
    sizes, split = [], torch.Tensor.split
    monkeypatch.setattr(torch.Tensor, "split", lambda x, n: sizes.append(n) or split(x, n))
    torch.testing.assert_close(log_mel(x, RATE, **options), one_block, atol=1e-4, rtol=0)
    assert sizes == [3]


def test_a_sound_with_too_many_frames_for_its_settings_is_refused_before_they_are_computed():
    hour = torch.zeros(1, 3600 * RATE)
    with pytest.raises(ValueError, match=r"3,599,976 frames, whose spectra have 512 numbers each, is too long"):
        log_mel(hour, RATE, frame_shift=1.0)


def test_a_waveform_without_values_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 16000\] on meta"):
        log_mel(torch.empty(1, 16000, device="meta"), RATE)


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
        name = "the given sound" if isinstance(source, io.BytesIO) else source.name  # a long path is cut in the middle
        with pytest.raises(ValueError, match=reason) as error:
            load_sound(source)
        message = str(error.value)
        assert message.startswith("cannot read ") and name in message and "\n" not in message


# ---- hostile files

hostile = settings(deadline=None, max_examples=30, derandomize=True)
KINDS = ("WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "FLAC", "MP3")


def sound_bytes(samples, kind="WAV", subtype=None, rate=RATE):
    soundfile.write(file := io.BytesIO(), np.asarray(samples), rate, format=kind, subtype=subtype)
    return file.getvalue()


SPEECH = (noise(4800) * 0.5).numpy()
WHOLE = {kind: sound_bytes(SPEECH, kind) for kind in KINDS}


def loaded(content):
    """The samples [C, W], or the message if it is refused."""
    try:
        return load_sound(io.BytesIO(content))[0]
    except ValueError as error:
        assert str(error).startswith("cannot read the given sound")
        assert str(error).isprintable() and len(str(error)) < 250
        return str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_that_is_cut_off_is_refused_and_never_heard_in_part(kind):
    whole = loaded(WHOLE[kind])
    assert whole.shape == (1, 4800)

    @hostile
    @given(st.floats(0, 0.98))
    def check(part):
        assert isinstance(loaded(WHOLE[kind][: int(part * len(WHOLE[kind]))]), str)

    check()


def test_the_message_of_a_wav_that_is_cut_off_has_both_lengths(tmp_path):
    (tmp_path / "x.wav").write_bytes(WHOLE["WAV"][: 44 + 2 * 1000])
    with pytest.raises(ValueError) as error:
        load_sound(tmp_path / "x.wav")
    why = "it is cut off: its header says 9,600 bytes of samples, it has 2,000"
    assert str(error.value) == f"cannot read {tmp_path / 'x.wav'}: {why}"


@pytest.mark.parametrize("size", [2**32 - 1, 2**32 - 2, 2**31 - 1, 0x7FFFF000])
def test_a_wav_whose_program_did_not_know_its_length_is_read_whole(size):
    content = bytearray(WHOLE["WAV"])
    content[40:44] = size.to_bytes(4, "little")
    assert torch.equal(loaded(bytes(content)), loaded(WHOLE["WAV"]))


@hostile
@given(st.integers(4801, 2**36 - 1) | st.sampled_from([0, 2**36 - 1]))
def test_a_flac_file_whose_header_claims_more_samples_is_refused_and_an_unknown_length_is_not(claimed):
    content = bytearray(WHOLE["FLAC"])  # STREAMINFO keeps the number of samples in 36 bits
    content[21] = content[21] & 0xF0 | claimed >> 32
    content[22:26] = (claimed % 2**32).to_bytes(4, "big")
    got = loaded(bytes(content))
    if claimed == 0:
        assert torch.equal(got, loaded(WHOLE["FLAC"]))
    else:
        assert "cut off" in got or "at most 3,600 s" in got


@hostile
@given(st.integers(0, 2**31 - 1) | st.integers(990, 1010) | st.integers(767_990, 768_010))
def test_a_sample_rate_outside_the_limits_is_refused(rate):
    content = bytearray(WHOLE["WAV"])
    content[24:28] = rate.to_bytes(4, "little")
    got = loaded(bytes(content))
    if MIN_RATE <= rate <= MAX_RATE:
        assert got.shape == (1, 4800)
    else:
        assert isinstance(got, str)
        with pytest.raises(ValueError, match=f"the sample rate must be 1,000 to 768,000 Hz, got {rate}"):
            log_mel(noise(1, 400), rate)


@pytest.mark.parametrize("rate", [math.nan, math.inf, "fast", None, -1, 1])
def test_a_rate_that_is_no_sample_rate_is_refused(rate):
    with pytest.raises(ValueError, match="the sample rate must be"):
        log_mel(noise(1, 16000), rate)


@hostile
@given(st.integers(0, 799), st.integers(0, 1), st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -101.0]))
def test_samples_that_are_not_finite_or_not_scaled_are_refused(place, channel, bad):
    samples = noise(2, 800)
    samples[channel, place] = bad
    problem = "NaN or infinite samples" if not math.isfinite(bad) else "its samples reach"
    assert problem in loaded(sound_bytes(samples.T, subtype="FLOAT"))
    if channel == 0:
        with pytest.raises(ValueError, match=problem):
            log_mel(samples, RATE)


def test_a_sound_that_is_too_long_is_refused_before_it_is_resampled(monkeypatch):
    monkeypatch.setattr(sounds, "MAX_SOUND_SECONDS", 0.25)
    assert "at most 0.25 s are read" in loaded(WHOLE["WAV"])
    with pytest.raises(ValueError, match="at most 0.25 s"):
        log_mel(noise(1, 4001), RATE)
    assert len(log_mel(noise(1, 4000), RATE)) == 23
    monkeypatch.setattr(sounds, "MAX_SOUND_SECONDS", 9)
    monkeypatch.setattr(sounds, "MAX_SOUND_SAMPLES", 9599)
    assert loaded(WHOLE["WAV"]).shape == (1, 4800)
    assert "4,800 samples in 2 channels" in loaded(sound_bytes(noise(4800, 2)))


@hostile
@given(st.integers(1, 7), st.integers(1, 40))
def test_a_sound_that_is_read_in_blocks_is_the_one_that_is_read_at_once(channels, block):
    samples = noise(97, channels)
    content = sound_bytes(samples, subtype="FLOAT")
    before, sounds.BLOCK = sounds.BLOCK, block
    try:
        assert torch.equal(loaded(content), samples.T)
    finally:
        sounds.BLOCK = before


@pytest.mark.parametrize("kind", [*KINDS, "OGG"])
def test_an_edited_sound_gives_finite_samples_or_one_line_and_nothing_on_standard_error(kind, capfd):
    intact = WHOLE.get(kind) or sound_bytes(SPEECH, kind)

    @hostile
    @given(st.lists(st.tuples(st.integers(0, len(intact) - 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
    def check(edits):
        content = bytearray(intact)
        for place, more in edits:
            content[place : place + len(more)] = more
        got = loaded(bytes(content))
        assert isinstance(got, str) or got.isfinite().all()

    check()
    assert capfd.readouterr().err == ""


def test_what_is_no_sound_file_is_refused():
    for source, problem in ((5, "got int"), (b"x.wav", "got bytes"), (io.StringIO("x"), "binary mode"), (None, "NoneType")):
        with pytest.raises(ValueError, match=problem):
            load_sound(source)
    with pytest.raises(ValueError, match="a device or a pipe"):
        load_sound("/dev/zero")
