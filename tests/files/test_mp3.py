"""MP3 files without a length, or with a wrong one, are heard whole. Run: ``pytest tests/files/test_mp3.py``"""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_ref.fbank import load_sound
from vita_ref.files import mp3

few = settings(max_examples=60, deadline=None, derandomize=True)
NOISE = np.random.default_rng(0).normal(0, 0.2, 200_000).astype(np.float32)
DELAY = 1152 + 529  # samples that encoder and decoder add or leave out


def encode(samples, rate=16000, mode="VARIABLE", channels=1):
    file = io.BytesIO()
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": 0.5}
    with soundfile.SoundFile(file, "w", rate, channels, **options) as out:
        out.write(np.stack([samples] * channels, 1))
    return file.getvalue()


def without_header(content):
    """The frames behind the first one, which holds the Xing header."""
    first, second = list(mp3.frame_places(content))[:2]
    assert b"Xing" in content[first:second] or b"Info" in content[first:second]
    return content[second:]


def envelope(samples):
    """The loudness of each 2,000 samples."""
    return np.array([np.abs(part).mean() for part in np.split(samples[: len(samples) // 2000 * 2000], len(samples) // 2000)])


SHAPES = {"loud first": np.arange(200_000) < 50_000, "loud last": np.arange(200_000) > 150_000, "by turns": np.sin(np.arange(200_000) / 9000) > 0}


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE", "CONSTANT"])
@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (22050, 2), (8000, 1)])
@pytest.mark.parametrize("loud", SHAPES.values(), ids=SHAPES)
def test_a_sound_without_a_header_is_heard_to_its_end(loud, rate, channels, mode):
    content = without_header(encode(NOISE * loud + 1e-3 * NOISE, rate, mode, channels))
    samples, got_rate = load_sound(io.BytesIO(content))
    assert got_rate == rate and samples.shape[0] == channels
    assert abs(samples.shape[1] - len(loud)) <= 2 * DELAY
    got, want = envelope(samples[0].numpy()), envelope(NOISE * loud + 1e-3 * NOISE)
    n = min(len(got), len(want))
    assert np.corrcoef(got[:n], want[:n])[0, 1] > 0.9 and len(want) - n <= 1


def test_two_files_that_were_joined_are_both_heard(tmp_path):
    one = encode(NOISE[:60_000])
    (tmp_path / "x.mp3").write_bytes(one + one)
    assert abs(load_sound(tmp_path / "x.mp3")[0].shape[1] - 120_000) <= 4 * DELAY


@pytest.mark.parametrize("junk", [b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(500), b"\xff" * 300], ids=len)
def test_bytes_behind_the_last_frame_do_not_matter(junk):
    content = without_header(encode(NOISE[:60_000] * (np.arange(60_000) < 20_000)))
    assert abs(load_sound(io.BytesIO(content + junk))[0].shape[1] - 60_000) <= 2 * DELAY


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_a_file_with_a_right_length_is_left_as_it_is(mode):
    content = encode(NOISE[:60_000], mode=mode)
    assert mp3.with_length(content, 60_000) is None
    assert load_sound(io.BytesIO(content))[0].shape[1] == soundfile.read(io.BytesIO(content))[0].shape[0]


def test_a_title_in_front_that_looks_like_a_header_is_skipped():
    content = without_header(encode(NOISE[:60_000] * (np.arange(60_000) < 20_000)))
    title = b"\xff\xfb\x90\x00Xing" * 40
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, len(title) >> 7, len(title) & 127]) + title + content
    assert [place - 10 - len(title) for place in mp3.frame_places(tagged)] == list(mp3.frame_places(content))
    assert abs(load_sound(io.BytesIO(tagged))[0].shape[1] - 60_000) <= 2 * DELAY


@few
@given(st.binary(max_size=400) | st.lists(st.sampled_from([b"\xff\xfb\x90\x00", b"\xff\xf3", b"ID3", b"\xff"]) | st.binary(max_size=9)).map(b"".join))
@example(b"ID3\x04\x00\x00\xff\xff\xff\xff")
@example(b"\xff\xfb\x90")
def test_the_frames_of_any_bytes_lie_inside_them_and_do_not_overlap(content):
    places = list(mp3.frame_places(content))
    ends = [place + mp3.frame_size(content, place) for place in places]
    assert all(a <= b for a, b in zip(ends, places[1:])) and all(end <= len(content) for end in ends)
    assert mp3.with_length(content, 10**9) is None


def test_bytes_that_only_look_like_headers_are_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr(mp3, "MOST_SKIPPED", 100)
    frame = encode(NOISE[:2000])[:400]
    size = mp3.frame_size(frame, 0)
    for count, found in ((90, 4), (110, 2)):
        content = frame[:size] * 2 + b"\xff\xfb" * (count // 2) + frame[:size] * 2
        assert len(list(mp3.frame_places(content))) == found
