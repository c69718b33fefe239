"""Films into frames. Run: ``pytest tests/test_video.py``"""

import json
import math
import struct
import sys

import numpy as np
import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import grid_sample

from vita_ref.video import frame_indices, load_frames, slow_fast

av = pytest.importorskip("av")
few = settings(max_examples=60, deadline=None)
STEP = 5  # grey levels from one frame of a test film to the next, so that a frame tells its number
CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "mkv": "libvpx"}


def shot(number):
    return Image.new("RGB", (48, 32), (number * STEP,) * 3)


def film(path, shots, title=None):
    """Writes the pictures as a film of 10 frames a second."""
    with av.open(str(path), "w") as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in shots:
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())
    return path


def shots(count):
    return [shot(number) for number in range(count)]


def numbers(frames):
    """Which frames of a test film these are, by their grey."""
    assert all(frame.mode == "RGB" for frame in frames)
    return [round(float(np.array(frame).mean()) / STEP) for frame in frames]


def refused(call, *arguments, **options):
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Which frames


def test_frames_are_those_of_upstream():
    rows = json.loads((GOLDEN / "cases/video_sampling.json").read_text())
    for row in rows:
        window = {k: row[k] for k in ("start", "end", "max_frames", "min_frames")}
        got = frame_indices(row["num_frames"], row["fps"], sample_fps=row["video_framerate"], **window)
        assert got == row["frame_indices"], row
    assert len(rows) == 30


seconds = st.none() | st.floats(0, 50) | st.integers(-2, 50)
rates = st.floats(0.5, 120)


@few
@given(st.integers(1, 3000), rates, seconds, seconds, st.integers(1, 20), st.integers(0, 6), st.floats(0.1, 60))
def test_frames_are_in_order_in_range_and_no_more_than_asked_for(count, fps, start, end, most, least, sample):
    options = {"start": start, "end": end, "max_frames": most, "min_frames": least, "sample_fps": sample}
    try:
        frames = frame_indices(count, fps, **options)
    except ValueError as error:
        begin = min(start, end) if None not in (start, end) else start
        assert "behind the end of the film" in str(error) and int(begin * fps) >= count
        return
    assert all(type(i) is int and 0 <= i < count for i in frames)
    assert frames == sorted(frames)
    assert min(most, max(least, 1)) <= len(frames) <= most
    if start is not None and end is not None:
        assert int(max(min(start, end), 0) * fps) <= frames[0]
        assert frames[-1] <= max(start, end, 0) * fps or start == end or max(start, end) <= 0


@few
@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 8))
def test_where_all_fit_it_is_a_frame_every_so_often(count, fps, sample):
    want = [i for i in range(count) if i % max(1, round(fps / sample)) == 0]
    assert frame_indices(count, fps, sample_fps=sample, max_frames=count, min_frames=1) == want


@few
@given(st.integers(17, 400), st.integers(2, 16))
def test_where_too_many_would_fit_the_first_and_the_last_stay_and_gaps_are_even(count, most):
    frames = frame_indices(count, 1, max_frames=most)
    assert (frames[0], frames[-1], len(frames)) == (0, count - 1, most)
    gaps = np.diff(frames)
    assert gaps.max() - gaps.min() <= 1


def test_a_short_film_repeats_frames_up_to_four():
    assert frame_indices(31, 30) == [0, 0, 0, 30]  # the worked example
    assert frame_indices(5, 24) == [0, 0, 0, 0]
    assert frame_indices(5, 24, max_frames=2) == [0, 0]


def test_times_that_change_places_or_are_one():
    assert frame_indices(100, 10, start=2, end=5) == [20, 30, 40, 50]
    assert frame_indices(100, 10, start=5, end=2) == [20, 30, 40, 50]
    assert frame_indices(100, 10, start=3, end=3, min_frames=1) == [30, 40]
    assert frame_indices(100, 10, start=-3, end=1, min_frames=1) == [0, 10]
    assert frame_indices(100, 10, start=8) == frame_indices(100, 10, start=8, end=90) == [80, 80, 80, 90]
    assert frame_indices(100, 10, end=1.5, min_frames=1) == [0, 10]
    assert frame_indices(100, 10, start=1.5, end=4) == [15, 15, 25, 35]


def test_nonsense_is_refused_with_its_name():
    assert "num_frames=0" in refused(frame_indices, 0, 25)
    for rate in (0, -1.0, math.nan, math.inf):
        told = refused(frame_indices, 9, rate)
        assert told.startswith("fps must be") and told.endswith(f"got {rate}")
        assert refused(frame_indices, 9, 25, sample_fps=rate).startswith("sample_fps must be")
    assert refused(frame_indices, 9, 25, max_frames=0) == "max_frames must be at least 1, got 0"
    assert refused(frame_indices, 9, 25, end=math.nan).startswith("end must be")
    assert "start=4 s lies behind" in refused(frame_indices, 90, 25, start=4)
    assert "90 frames at 25 a second" in refused(frame_indices, 90, 25, start=4, end=8)


# Slow and fast


def test_pooled_features_are_those_of_upstream():
    t = case("slow_fast")
    got = slow_fast(list(t["features"]), t["sf_masks"])
    assert [len(frame) for frame in got] == t["output_lengths"].tolist()
    torch.testing.assert_close(torch.cat(got), t["output"], atol=2e-5, rtol=0)


@few
@given(st.lists(st.integers(0, 2), max_size=14))
def test_each_fourth_frame_of_a_run_is_fine_and_pictures_stay(masks):
    features = [torch.randn(25, 3) for _ in masks]
    for place, (mask, before, after) in enumerate(zip(masks, features, slow_fast(features, masks), strict=True)):
        run = next((n for n in range(1, place + 1) if masks[place - n] != mask), place + 1) - 1
        assert after is before if mask == 0 else after.shape == ((49 if run % 4 else 144), 3)


@pytest.mark.parametrize("edge", [4, 9, 16])
def test_pooling_is_bilinear_and_keeps_rows_and_columns(edge):
    frame = torch.randn(edge * edge, 5)
    picture = frame.view(1, edge, edge, 5).permute(0, 3, 1, 2)
    centres = (torch.arange(12) + 0.5) / 12 * 2 - 1
    places = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)[None]
    want = grid_sample(picture, places, padding_mode="border", align_corners=False)
    torch.testing.assert_close(slow_fast([frame], [1])[0], want[0].permute(1, 2, 0).reshape(144, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_keep_their_dtype(dtype):
    assert [frame.dtype for frame in slow_fast(torch.randn(3, 16, 5).to(dtype), [1, 1, 0])] == [dtype] * 3


def test_features_that_do_not_fit_are_refused():
    assert "got 2 for 3 pictures" in refused(slow_fast, list(torch.randn(3, 4, 5)), [1, 1])
    assert "got 17" in refused(slow_fast, [torch.randn(17, 5)], [1])  # a class token is no part of a grid


# Films


@pytest.mark.parametrize("kind", CODECS)
def test_the_frames_of_a_film_are_the_ones_that_were_chosen(tmp_path, kind):
    path = film(tmp_path / f"x.{kind}", shots(45))
    assert numbers(load_frames(path)) == frame_indices(45, 10) == [0, 10, 20, 30, 40]
    assert numbers(load_frames(str(path), fps=2, start=1, end=3)) == [10, 15, 20, 25, 30]
    assert numbers(load_frames(path, fps=10, max_frames=3)) == [0, 22, 44]
    assert numbers(load_frames(path, end=0.5)) == [0, 0, 0, 0]


def test_where_the_header_promises_too_much_the_frames_are_counted(tmp_path):
    path = film(tmp_path / "x.avi", shots(20))
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):  # where an AVI keeps its number of frames
        place = content.index(name) + offset
        assert struct.unpack_from("<I", content, place) == (20,)
        struct.pack_into("<I", content, place, 60)
    path.write_bytes(content)
    with av.open(str(path)) as promising:
        assert promising.streams.video[0].frames == 60
    assert numbers(load_frames(path, fps=2)) == [0, 5, 10, 15]


def test_a_film_that_was_held_sideways_comes_upright(tmp_path):
    half = shot(0)
    half.paste("white", (24, 0, 48, 32))  # on the right
    path = film(tmp_path / "x.mp4", [half] * 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # the track's matrix
    assert struct.unpack_from(">9I", content, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, place, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # x' = -y, y' = x
    path.write_bytes(content)
    frame = load_frames(path)[0]
    assert frame.size == (32, 48)
    levels = np.array(frame).mean((1, 2))
    assert levels[:20].max() < 30 and levels[-20:].min() > 220  # the right side is the bottom now


def test_a_title_need_not_be_unicode(tmp_path):
    path = film(tmp_path / "x.mp4", shots(20), title="caf\u00e9")
    content = path.read_bytes().replace("caf\u00e9".encode(), b"cafe\xe9")
    assert b"cafe\xe9" in content
    path.write_bytes(content)
    assert numbers(load_frames(path, fps=2)) == [0, 5, 10, 15]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_a_film_with_its_own_pauses(tmp_path, kind):
    options, path = {"lossless": True} if kind == "webp" else {}, tmp_path / f"x.{kind}"
    shot(0).save(path, save_all=True, append_images=shots(12)[1:], duration=500, **options)  # 2 frames a second
    assert numbers(load_frames(path)) == [0, 2, 4, 6, 8, 10]
    assert numbers(load_frames(path, fps=2, start=1, end=3)) == [2, 3, 4, 5, 6]
    assert numbers(load_frames(path, max_frames=2)) == [0, 10]


def test_a_short_animation_gives_different_frames(tmp_path):
    path = tmp_path / "x.gif"
    for count, want in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 2, 4, 7])):
        shot(0).save(path, save_all=True, append_images=shots(count)[1:], duration=40)
        assert numbers(load_frames(path)) == want
    assert numbers(load_frames(path, max_frames=2)) == [0, 7]


def test_an_animation_without_pauses_has_ten_frames_a_second(tmp_path):
    shot(0).save(tmp_path / "x.gif", save_all=True, append_images=shots(45)[1:], duration=0)
    assert numbers(load_frames(tmp_path / "x.gif")) == [0, 10, 20, 30, 40]


def test_an_animation_that_draws_only_what_changes_is_put_together(tmp_path):
    whole, patch = shot(10), Image.new("RGBA", (48, 32))
    patch.paste("white", (0, 0, 24, 32))
    path = tmp_path / "x.gif"
    whole.save(path, save_all=True, append_images=[patch], duration=1000, disposal=1)
    first, second = load_frames(path)
    assert np.array_equal(first, whole)
    assert np.unique(np.array(second)[:, :24]).tolist() == [255]
    assert np.unique(np.array(second)[:, 24:]).tolist() == [10 * STEP]


def test_the_pictures_of_a_folder_are_frames_in_the_order_in_which_people_count(tmp_path):
    for number in range(12):
        shot(number).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / "more").mkdir()
    assert numbers(load_frames(tmp_path)) == list(range(12))
    assert numbers(load_frames(tmp_path, max_frames=3)) == [0, 5, 11]
    assert numbers(load_frames(tmp_path, start=2, end=10, fps=0.5)) == [2, 4, 6, 8, 10]
    assert numbers(load_frames(tmp_path, fps=30)) == list(range(12))
    for number in range(2, 12):
        (tmp_path / f"frame{number}.png").unlink()
    assert numbers(load_frames(tmp_path)) == [0, 1]


# No film


def test_what_is_no_film_is_named_with_the_reason(tmp_path):
    path = tmp_path / "x.mp4"
    assert refused(load_frames, path) == f"cannot read {path}: no such file or folder"
    path.write_bytes(b"no film\n")
    assert refused(load_frames, path) == f"cannot read {path}: Invalid data found when processing input"
    path.write_bytes(b"")
    assert str(path) in refused(load_frames, path)
    assert f"{tmp_path} has no frames: expected pictures that end in .bmp" in refused(load_frames, _folder(tmp_path))
    assert "got NoneType" in refused(load_frames, None)
    assert "start=9 s" in refused(load_frames, film(path, shots(20)), start=9)
    assert "fps must be" in refused(load_frames, path, fps=0)


def _folder(path):
    for found in path.iterdir():
        found.unlink()
    return path


def test_a_sound_is_no_film(tmp_path):
    with av.open(str(tmp_path / "x.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    assert "it has no moving pictures" in refused(load_frames, tmp_path / "x.wav")


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
def test_half_a_film_is_refused(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "mp4":
        film(path, shots(20))
    else:
        levels = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
        noise = [Image.fromarray(frame) for frame in levels]
        noise[0].save(path, save_all=True, append_images=noise[1:], duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"cannot read {path}: " in refused(load_frames, path)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_film_is_a_film_or_a_value_error(tmp_path):
    path, draw = film(tmp_path / "x.mp4", shots(12)), np.random.default_rng(0)
    whole, broken = path.read_bytes(), 0
    for _ in range(60):
        content = bytearray(whole)
        for place in draw.integers(0, len(whole), 3):
            content[place] = draw.integers(256)
        path.write_bytes(content)
        try:
            assert load_frames(path)
        except ValueError as error:
            broken += 1
            assert str(error).startswith(f"cannot read {path}: ") and "\n" not in str(error)
    assert broken


def test_without_av_the_error_says_what_to_install_and_animations_still_work(tmp_path, monkeypatch):
    path = film(tmp_path / "x.mp4", shots(4))
    shot(3).save(tmp_path / "x.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    assert refused(load_frames, path) == "films need av: pip install vita-ref[video]"
    assert numbers(load_frames(tmp_path / "x.gif")) == [3]
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refused(load_frames, path) == "films need Pillow: pip install Pillow"
