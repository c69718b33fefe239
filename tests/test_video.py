"""Videos become frames: which frames, which files, which features. Run: ``pytest tests/test_video.py``"""

import itertools
import json
import math
import os
import struct
import sys
import time
import weakref
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import grid_sample

from vita_ref import VitaConfig, video
from vita_ref.analysis import sources
from vita_ref.files import films, media
from vita_ref.files.films import _upright, is_constant
from vita_ref.image import open_image
from vita_ref.request import Request, load_video
from vita_ref.video import frame_indices, iterate_frames, load_frames, slow_fast

av = pytest.importorskip("av")
few = settings(max_examples=60, deadline=None)
STEP = 5  # frame i of a test video has the grey level 5 * i
CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4", "mkv": "libvpx"}


def grey_image(number):
    return Image.new("RGB", (48, 32), (number * STEP,) * 3)


def grey_images(count):
    return [grey_image(number) for number in range(count)]


def write_video(path, images, title=None):
    """Writes the images as a video of 10 frames per second."""
    with av.open(str(path), "w") as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image in images:
            out.mux(stream.encode(av.VideoFrame.from_image(image)))
        out.mux(stream.encode())
    return path


def save_animation(path, images, duration):
    """Writes the images as an animated GIF, WebP or PNG, each of ``duration`` ms."""
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, **lossless)
    return path


def numbers(frames):
    """The indices of the frames of a test video, from their grey levels."""
    assert all(frame.mode == "RGB" for frame in frames)
    return [round(float(np.array(frame).mean()) / STEP) for frame in frames]


def refusal(call, *arguments, **options):
    """The message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- which frames


def test_the_indices_are_those_of_upstream():
    rows = json.loads((GOLDEN / "cases" / "video_sampling.json").read_text())
    for row in rows:
        window = {k: row[k] for k in ("start", "end", "max_frames", "min_frames")}
        got = frame_indices(row["num_frames"], row["fps"], sample_fps=row["video_framerate"], **window)
        assert got == row["frame_indices"], row
    assert len(rows) == 30


seconds = st.none() | st.floats(0, 50) | st.integers(-2, 50)
rates = st.floats(0.5, 120)


@few
@given(st.integers(1, 3000), rates, seconds, seconds, st.integers(1, 20), st.integers(0, 6), st.floats(0.1, 60))
def test_the_indices_are_sorted_within_the_times_and_not_too_many(count, fps, start, end, most, least, sample):
    options = {"start": start, "end": end, "max_frames": most, "min_frames": least, "sample_fps": sample}
    try:
        indices = frame_indices(count, fps, **options)
    except ValueError as error:
        begin = min(start, end) if None not in (start, end) else start
        assert "after the end of the video" in str(error) and int(begin * fps) >= count
        return
    assert all(type(i) is int and 0 <= i < count for i in indices)
    assert indices == sorted(indices)
    assert min(most, max(least, 1)) <= len(indices) <= most
    if start is not None and end is not None:
        assert int(max(min(start, end), 0) * fps) <= indices[0]
        assert indices[-1] <= max(start, end, 0) * fps or start == end or max(start, end) <= 0


@few
@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 8))
def test_without_a_limit_every_nth_frame_is_chosen(count, fps, sample):
    want = [i for i in range(count) if i % max(1, round(fps / sample)) == 0]
    assert frame_indices(count, fps, sample_fps=sample, max_frames=count, min_frames=1) == want


@few
@given(st.integers(17, 400), st.integers(2, 16))
def test_max_frames_keeps_the_first_and_the_last_frame_and_even_gaps(count, most):
    indices = frame_indices(count, 1, max_frames=most)
    assert (indices[0], indices[-1], len(indices)) == (0, count - 1, most)
    gaps = np.diff(indices)
    assert gaps.max() - gaps.min() <= 1


def test_a_short_video_repeats_frames_up_to_min_frames():  # quirk
    assert frame_indices(31, 30) == [0, 0, 0, 30]  # the example of the docstring
    assert frame_indices(5, 24) == [0, 0, 0, 0]
    assert frame_indices(5, 24, max_frames=2) == [0, 0]


def test_start_and_end_are_swapped_if_reversed_and_select_a_second_if_equal():
    assert frame_indices(100, 10, start=2, end=5) == [20, 30, 40, 50]
    assert frame_indices(100, 10, start=5, end=2) == [20, 30, 40, 50]
    assert frame_indices(100, 10, start=3, end=3, min_frames=1) == [30, 40]


def test_start_and_end_outside_of_the_video_are_moved_to_its_ends_and_fractions_are_kept():
    assert frame_indices(100, 10, start=-3, end=1, min_frames=1) == [0, 10]
    assert frame_indices(100, 10, start=8) == frame_indices(100, 10, start=8, end=90) == [80, 80, 80, 90]
    assert frame_indices(100, 10, end=1.5, min_frames=1) == [0, 10]
    assert frame_indices(100, 10, start=1.5, end=4) == [15, 15, 25, 35]


def test_arguments_out_of_range_are_refused_by_name():
    assert refusal(frame_indices, 0, 25) == "num_frames must be at least 1, got 0"
    assert refusal(frame_indices, 9, 25, max_frames=0) == "max_frames must be at least 1, got 0"
    for rate in (0, -1.0, math.nan, math.inf):
        message = refusal(frame_indices, 9, rate)
        assert message.startswith("fps must be") and message.endswith(f"got {rate}")
        assert refusal(frame_indices, 9, 25, sample_fps=rate).startswith("sample_fps must be")
    assert refusal(frame_indices, 9, 25, end=math.nan).startswith("end must be")
    assert refusal(frame_indices, 9, 25, start=math.inf).startswith("start must be")
    assert "start=4 s is after the end of the video" in refusal(frame_indices, 90, 25, start=4)
    assert "it lasts 3.6 s" in refusal(frame_indices, 90, 25, start=4, end=8)


# ---- slow and fast frames


def test_pooled_features_are_those_of_upstream():
    t = case("slow_fast")
    got = slow_fast(list(t["features"]), t["sf_masks"])
    assert [len(frame) for frame in got] == t["output_lengths"].tolist()
    torch.testing.assert_close(torch.cat(got), t["output"], atol=2e-5, rtol=0)


@few
@given(st.lists(st.integers(0, 2), max_size=14))
def test_every_fourth_frame_of_a_run_is_slow_and_other_images_are_not_changed(masks):
    features = [torch.randn(25, 3) for _ in masks]
    pooled, place = slow_fast(features, masks), 0
    assert len(pooled) == len(masks)
    for i, (mask, before, after) in enumerate(zip(masks, features, pooled)):
        place = place + 1 if i > 0 and mask == masks[i - 1] else 0  # in the run of equal masks
        if mask == 0:
            assert after is before
        else:
            assert after.shape == (144 if place % 4 == 0 else 49, 3)


@pytest.mark.parametrize("edge", [4, 9, 16])
def test_pooling_is_bilinear_and_keeps_rows_and_columns(edge):
    frame = torch.randn(edge * edge, 5)
    grid = frame.view(1, edge, edge, 5).permute(0, 3, 1, 2)
    centres = (torch.arange(12) + 0.5) / 12 * 2 - 1
    points = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)[None]
    want = grid_sample(grid, points, padding_mode="border", align_corners=False)
    torch.testing.assert_close(slow_fast([frame], [1])[0], want[0].permute(1, 2, 0).reshape(144, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_keep_their_dtype(dtype):
    assert [frame.dtype for frame in slow_fast(torch.randn(3, 16, 5).to(dtype), [1, 1, 0])] == [dtype] * 3


def test_too_few_masks_and_features_without_a_square_grid_are_refused():
    assert "got 2 for 3 images" in refusal(slow_fast, list(torch.randn(3, 4, 5)), [1, 1])
    assert "got 17" in refusal(slow_fast, [torch.randn(17, 5)], [1])  # 16 patches and a class token


# ---- files


@pytest.mark.parametrize("kind", CODECS)
def test_the_decoded_frames_have_the_chosen_indices(tmp_path, kind):
    path = write_video(tmp_path / f"x.{kind}", grey_images(45))
    assert numbers(load_frames(path)) == frame_indices(45, 10) == [0, 10, 20, 30, 40]
    assert numbers(load_frames(str(path), fps=2, start=1, end=3)) == [10, 15, 20, 25, 30]
    assert numbers(load_frames(path, fps=10, max_frames=3)) == [0, 22, 44]
    assert numbers(load_frames(path, end=0.5)) == [0, 0, 0, 0]


def test_frames_are_counted_if_the_header_claims_too_many(tmp_path):
    path = write_video(tmp_path / "x.avi", grey_images(20))
    content = bytearray(path.read_bytes())
    for name, offset in ((b"avih", 24), (b"strh", 40)):  # where an AVI keeps its number of frames
        place = content.index(name) + offset
        assert struct.unpack_from("<I", content, place) == (20,)
        struct.pack_into("<I", content, place, 60)
    path.write_bytes(content)
    with av.open(str(path)) as video:
        assert video.streams.video[0].frames == 60
    assert numbers(load_frames(path, fps=2)) == [0, 5, 10, 15]


def test_the_frames_of_a_rotated_video_are_upright(tmp_path):
    half = grey_image(0)
    half.paste("white", (24, 0, 48, 32))  # on the right
    path = write_video(tmp_path / "x.mp4", [half] * 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # the track's matrix
    assert struct.unpack_from(">9I", content, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, place, 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)  # x' = -y, y' = x
    path.write_bytes(content)
    frame = load_frames(path)[0]
    assert frame.size == (32, 48)
    levels = np.array(frame).mean((1, 2))
    assert levels[:20].max() < 30 and levels[-20:].min() > 220  # the right side is at the bottom


def test_a_title_that_is_not_utf_8_is_accepted(tmp_path):
    path = write_video(tmp_path / "x.mp4", grey_images(20), title="caf\u00e9")
    content = path.read_bytes().replace("caf\u00e9".encode(), b"cafe\xe9")
    assert b"cafe\xe9" in content
    path.write_bytes(content)
    assert numbers(load_frames(path, fps=2)) == [0, 5, 10, 15]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_frame_rate_of_an_animation_is_that_of_its_durations(tmp_path, kind):
    path = save_animation(tmp_path / f"x.{kind}", grey_images(12), duration=500)  # 2 frames per second
    assert numbers(load_frames(path)) == [0, 2, 4, 6, 8, 10]
    assert numbers(load_frames(path, fps=2, start=1, end=3)) == [2, 3, 4, 5, 6]
    assert numbers(load_frames(path, max_frames=2)) == [0, 10]


def test_a_short_animation_gives_up_to_four_different_frames(tmp_path):
    for count, want in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [0, 2, 4, 7])):
        path = save_animation(tmp_path / "x.gif", grey_images(count), duration=40)
        assert numbers(load_frames(path)) == want
    assert numbers(load_frames(path, max_frames=2)) == [0, 7]


def test_an_animation_without_durations_has_ten_frames_per_second(tmp_path):
    path = save_animation(tmp_path / "x.gif", grey_images(45), duration=0)
    assert numbers(load_frames(path)) == [0, 10, 20, 30, 40]


def test_an_animation_frame_that_stores_only_changes_is_drawn_on_the_frame_before(tmp_path):
    whole, patch = grey_image(10), Image.new("RGBA", (48, 32))
    patch.paste("white", (0, 0, 24, 32))
    path = tmp_path / "x.gif"
    whole.save(path, save_all=True, append_images=[patch], duration=1000, disposal=1)
    first, second = load_frames(path)
    assert np.array_equal(first, whole)
    assert np.unique(np.array(second)[:, :24]).tolist() == [255]
    assert np.unique(np.array(second)[:, 24:]).tolist() == [10 * STEP]


def test_each_frame_has_its_time_in_the_video(tmp_path):
    """Frame i of a video of 10 frames per second is at i / 10; of an animation, at the sum of the durations before it."""
    film = load_frames(write_video(tmp_path / "a.mp4", grey_images(31)))
    assert [frame.info["seconds"] for frame in film] == pytest.approx([number / 10 for number in numbers(film)])
    animation = load_frames(save_animation(tmp_path / "a.gif", grey_images(6), [500, 1500, 1000, 1000, 1000, 1000]))
    starts = [0, 0.5, 2, 3, 4, 5]
    assert [frame.info["seconds"] for frame in animation] == [starts[number] for number in numbers(animation)]
    uneven = load_frames(write_film(tmp_path / "b.mkv", [0, 0.4, 1.9, 4.0, 4.1]))
    assert all(time in (0, 0.4, 1.9, 4.0, 4.1) for time in [round(frame.info["seconds"], 2) for frame in uneven])


def test_the_images_of_a_folder_are_frames_in_numeric_order(tmp_path):
    for number in range(12):
        grey_image(number).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "more").mkdir()
    assert numbers(load_frames(tmp_path)) == list(range(12))
    assert numbers(load_frames(tmp_path, max_frames=3)) == [0, 5, 11]
    assert numbers(load_frames(tmp_path, start=2, end=10, fps=0.5)) == [2, 4, 6, 8, 10]
    assert numbers(load_frames(tmp_path, fps=30)) == list(range(12))
    for number in range(2, 12):
        (tmp_path / f"frame{number}.png").unlink()
    assert numbers(load_frames(tmp_path)) == [0, 1]


# ---- files that are refused


def test_the_message_names_the_file_and_the_reason(tmp_path):
    path = tmp_path / "x.mp4"
    assert refusal(load_frames, path) == f"cannot read {path}: no such file or folder"
    path.write_bytes(b"not a video\n")
    assert refusal(load_frames, path) == f"cannot read {path}: Invalid data found when processing input"
    path.write_bytes(b"")
    assert str(path) in refusal(load_frames, path)
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} has no frames: expected images with the suffix .bmp" in refusal(
        load_frames, tmp_path / "empty"
    )
    assert "got NoneType" in refusal(load_frames, None)


def test_options_out_of_range_are_refused(tmp_path):
    path = write_video(tmp_path / "x.mp4", grey_images(20))
    assert "start=9 s" in refusal(load_frames, path, start=9)
    assert "sample_fps must be" in refusal(load_frames, path, fps=0)


def test_a_sound_file_is_refused_as_a_video(tmp_path):
    with av.open(str(tmp_path / "x.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    assert refusal(load_frames, tmp_path / "x.wav") == f"cannot read {tmp_path / 'x.wav'}: no video stream found"


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp"])
def test_the_first_half_of_a_file_is_refused(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "mp4":
        write_video(path, grey_images(20))
    else:
        levels = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
        save_animation(path, [Image.fromarray(frame) for frame in levels], duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refusal(load_frames, path).startswith(f"cannot read {path}: ")


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_video_gives_frames_or_a_value_error(tmp_path):
    path, draw = write_video(tmp_path / "x.mp4", grey_images(12)), np.random.default_rng(0)
    intact, refusals = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(intact)
        for place in draw.integers(0, len(intact), 3):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_frames(path)
        except ValueError as error:
            refusals += 1
            assert str(error).startswith(f"cannot read {path}: ") and "\n" not in str(error)
    assert 0 < refusals < 60


def test_without_av_the_message_says_what_to_install_and_animations_still_work(tmp_path, monkeypatch):
    path = write_video(tmp_path / "x.mp4", grey_images(4))
    grey_image(3).save(tmp_path / "x.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    assert refusal(load_frames, path) == "videos need av: pip install vita-ref[video]"
    assert numbers(load_frames(tmp_path / "x.gif")) == [3]
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refusal(load_frames, path) == "videos need Pillow: pip install Pillow"


# ---- times, orientations and limits

hostile = settings(max_examples=25, deadline=None, derandomize=True)


def write_film(path, times, codec="libx264", rate=30):
    """Writes a film whose frame i has the grey level of `grey_image` and is shown at times[i] (seconds)."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_image(grey_image(i))
            frame.pts, frame.time_base = round(time / base), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


UNEVEN = [i / 30 for i in range(30)] + list(range(1, 11))  # 30 frames in the first second, then one a second


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov", "ts", "avi"])
def test_a_film_without_a_constant_rate_shows_what_is_on_screen_at_each_second(tmp_path, kind):
    path = write_film(tmp_path / f"x.{kind}", UNEVEN, "ffv1" if kind == "avi" else "libx264")
    assert numbers(load_frames(path)) == [0, *range(30, 40)]
    assert numbers(load_frames(path, start=3, end=6)) == [32, 33, 34, 35]
    assert numbers(load_frames(path, fps=0.5)) == [0, 31, 33, 35, 37, 39]
    assert numbers(load_frames(path, fps=10, end=0.5, max_frames=3)) == [0, 6, 15]
    assert "start=11 s is after the end of the video: it lasts 10" in refusal(load_frames, path, start=11)


def test_a_film_without_an_average_rate_is_read_by_its_times(tmp_path):
    path = write_film(tmp_path / "x.ts", UNEVEN)
    with av.open(str(path)) as film:
        assert film.streams.video[0].average_rate is None
    assert numbers(load_frames(path)) == [0, *range(30, 40)]


@hostile
@given(
    st.lists(st.sampled_from([20, 100, 700, 2500]), min_size=3, max_size=25),
    st.sampled_from([0.5, 1, 2, 3.7]),
    st.integers(1, 40),
)
def test_the_frames_of_a_film_are_those_on_screen_at_evenly_spaced_times(tmp_path_factory, gaps, fps, most):
    starts = [0, *np.cumsum(gaps).tolist()]  # ms
    path = write_film(tmp_path_factory.mktemp("film") / "x.mkv", [start / 1000 for start in starts])
    got = numbers(load_frames(path, fps=fps, max_frames=most))
    if len(set(gaps)) > 1 and not is_constant([start / 1000 for start in starts], 30):
        moments = [k * 1000 / fps for k in range(int(starts[-1] * fps / 1000 + 1e-9) + 1)]
        count = min(max(len(moments), 4), most)
        chosen = [moments[int(i)] for i in np.linspace(0, len(moments) - 1, count)]
        assert got == [max(i for i, start in enumerate(starts) if start <= moment + 1) for moment in chosen]


@given(st.integers(1, 500), st.floats(0.1, 240))
@few
def test_times_that_a_container_has_rounded_are_those_of_a_constant_rate(count, fps):
    for unit in (0.001, 1 / 90_000):
        times = [round(i / fps / unit) * unit for i in range(count)]
        assert is_constant(times, fps) or unit * fps > 0.5
    gap = 1 / fps
    assert not is_constant([0, *(i * gap + gap for i in range(1, 9))], fps)
    assert is_constant([None] * count, fps) and not is_constant([None] * count, 0)


ORIENTATIONS = {
    (a, b, c, d) for a, b, c, d in itertools.product((-1, 0, 1), repeat=4) if abs(a * d - b * c) == 1 and a * c == b * d == 0
}


@pytest.fixture(scope="module")
def plain_film(tmp_path_factory):
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(levels).resize((48, 32), Image.Resampling.NEAREST)
    return write_video(tmp_path_factory.mktemp("plain") / "x.mp4", [image] * 2)


@pytest.mark.parametrize("matrix", sorted(ORIENTATIONS))
def test_a_frame_is_turned_and_mirrored_as_its_display_matrix_says(plain_film, tmp_path, matrix):
    a, b, c, d = matrix
    content = bytearray(plain_film.read_bytes())
    place = content.index(b"tkhd") + 44
    struct.pack_into(">9i", content, place, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "x.mp4").write_bytes(content)
    plain, got = np.array(load_frames(plain_film)[0]), np.array(load_frames(tmp_path / "x.mp4")[0])
    y, x = np.mgrid[: plain.shape[0], : plain.shape[1]]
    new_x, new_y = a * x + c * y, b * x + d * y
    want = np.zeros_like(got)
    want[new_y - new_y.min(), new_x - new_x.min()] = plain
    assert np.array_equal(got, want)


def test_all_eight_orientations_are_tested_and_others_are_rounded():
    assert len(ORIENTATIONS) == 8
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    for matrix, turn in (((2, 0, 0, 1), None), ((-9, 3, 2, 8), "FLIP_LEFT_RIGHT"), ((1, 9, -9, 1), "ROTATE_270")):
        a, b, c, d = (x << 12 for x in matrix)
        data = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes()
        frame = SimpleNamespace(to_image=image.copy, side_data={"DISPLAYMATRIX": data})
        want = image.transpose(Image.Transpose[turn]) if turn else image
        assert np.array_equal(_upright(frame), want)


def gif_of_size(path, width, height, count):
    """An animation of ``count`` frames that store 2 x 2 pixels each, on a canvas of this size."""
    frames = [Image.new("RGB", (2, 2), (i % 7 * 30,) * 3) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    content = bytearray(path.read_bytes())
    content[6:10] = struct.pack("<HH", width, height)
    path.write_bytes(content)
    return path


@pytest.mark.filterwarnings("ignore")
def test_an_animation_with_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    start = time.process_time()
    message = refusal(load_frames, gif_of_size(tmp_path / "x.gif", 5000, 5000, 300))
    assert "300 frames of 5000 x 5000 are more than 1,000,000,000 pixels" in message
    assert time.process_time() - start < 2
    assert (tmp_path / "x.gif").stat().st_size < 20_000
    assert len(load_frames(gif_of_size(tmp_path / "x.gif", 300, 200, 40))) == 4


def test_the_images_of_a_folder_are_opened_one_by_one(tmp_path, monkeypatch):
    for number in range(6):
        grey_image(number).save(tmp_path / f"{number}.png")
    opened = []
    monkeypatch.setattr(video, "open_image", lambda source: opened.append(source.name) or open_image(source))
    frames = iterate_frames(tmp_path)
    assert numbers([next(frames), next(frames)]) == [0, 1] and opened == ["0.png", "1.png"]
    assert isinstance(load_frames(tmp_path), list)


def test_chosen_frames_that_do_not_fit_into_memory_together_are_refused(tmp_path, monkeypatch):
    for number in range(4):
        grey_image(number).save(tmp_path / f"{number}.png")
    path = write_video(tmp_path / "x.mp4", grey_images(40))
    monkeypatch.setattr(media, "MAX_HELD_PIXELS", 3 * 48 * 32)
    for source in (tmp_path, path):
        assert "4 frames of 48 x 32 are more than 4,608 pixels: lower max_frames" in refusal(load_frames, source)
        assert len(load_frames(source, max_frames=3)) == 3
    assert len(list(iterate_frames(tmp_path))) == 4


def test_a_film_with_too_many_pixels_or_seconds_is_refused(tmp_path, monkeypatch):
    path = write_film(tmp_path / "x.mkv", UNEVEN)
    monkeypatch.setattr(media, "MAX_FILM_SECONDS", 9)
    assert "it lasts 10 s, more than 9 s" in refusal(load_frames, path)
    monkeypatch.setattr(films, "MAX_FILM_PIXELS", 9 * 48 * 32)
    assert "its frames have more than 13,824 pixels" in refusal(load_frames, path)
    monkeypatch.setattr(films, "MAX_PIXELS", 1000)
    assert str(path) in refusal(load_frames, path)


anything = st.none() | st.text(max_size=3) | st.floats() | st.integers(-(10**30), 10**30) | st.booleans()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(anything, anything, anything, anything)
def test_options_of_any_kind_give_frames_or_one_line(gif, fps, most, start, end):
    try:
        frames = load_frames(gif, fps=fps, max_frames=most, start=start, end=end)
        assert 1 <= len(frames) <= most
    except ValueError as error:
        assert str(error).isprintable() and len(str(error)) < 250


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 10**12), st.floats(1e-8, 1e8), st.floats(1e-8, 1e8), seconds, st.floats(-1e8, 1e8))
def test_extreme_rates_and_lengths_give_indices_or_one_line(count, fps, sample, start, end):
    try:
        indices = frame_indices(count, fps, sample_fps=sample, start=start, end=end)
        assert all(0 <= i < count for i in indices)
    except ValueError as error:
        assert "after the end of the video" in str(error)


@pytest.fixture(scope="module")
def gif(tmp_path_factory):
    return save_animation(tmp_path_factory.mktemp("gif") / "x.gif", grey_images(12), duration=500)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "mp4", "mkv"])
@pytest.mark.filterwarnings("ignore")
def test_an_edited_video_gives_frames_or_one_line_and_nothing_on_standard_error(tmp_path, kind, capfd):
    path = tmp_path / f"x.{kind}"
    if kind in CODECS:
        write_video(path, grey_images(6))
    else:
        save_animation(path, grey_images(6), duration=100)
    intact = path.read_bytes()

    @hostile
    @given(st.lists(st.tuples(st.integers(0, len(intact) - 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4))
    def check(edits):
        content = bytearray(intact)
        for place, more in edits:
            content[place : place + len(more)] = more
        path.write_bytes(content)
        try:
            assert all(frame.mode == "RGB" for frame in load_frames(path))
        except ValueError as error:
            assert str(error).startswith(f"cannot read {path}: ")
            assert str(error).isprintable() and len(str(error)) < 300

    check()
    assert capfd.readouterr().err == ""


def test_devices_and_pipes_and_names_with_control_characters_are_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a device or a pipe" in refusal(load_frames, tmp_path / "pipe")
    assert "a device or a pipe" in refusal(load_frames, "/dev/zero")
    assert refusal(load_frames, "a\x1b[31m\n.mp4") == r"cannot read a\x1b[31m\n.mp4: no such file or folder"
    assert len(refusal(load_frames, "x" * 5000)) < 150
    assert refusal(load_frames, "a\0b").startswith(r"cannot read a\x00b: ")


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "hello world\n" * 50),  # FFmpeg would draw it
        ("live.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2,\n{other}\n"),  # and wait for more
        ("list.ffconcat", "ffconcat version 1.0\nfile {other}\n"),
        ("stream.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"),
        ("itself.ffconcat", "ffconcat version 1.0\nfile itself.ffconcat\n"),
        ("list.pls", "[playlist]\nFile1={other}\n"),
        ("list.xspf", "<playlist xmlns='http://xspf.org/ns/0/'><track><location>{other}</location></track></playlist>"),
        ("a.ans", "\x1b[31mred"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:02,000\nhi\n"),
        ("a.mpd", "<?xml version='1.0'?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>"),
    ],
)
def test_only_containers_of_videos_are_read_and_no_file_leads_to_another(tmp_path, name, text):
    av = pytest.importorskip("av")
    other = tmp_path / "other.mp4"
    with av.open(str(other), "w") as film:
        stream = film.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(5):
            film.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), "red"))))
        film.mux(stream.encode())
    assert load_frames(str(other))
    (tmp_path / name).write_text(text.format(other=other.name))
    with pytest.raises(ValueError, match=f"cannot read .*{name}") as refused:
        load_frames(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_a_film_whose_codec_is_not_known_is_refused(tmp_path):
    path = write_film(tmp_path / "x.mkv", [0, 1, 2], "ffv1")
    content = path.read_bytes()
    assert content.count(b"V_FFV1") == 1
    path.write_bytes(content.replace(b"V_FFV1", b"V_FFX9"))
    assert "FFmpeg does not know its video codec" in refusal(load_frames, path)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi"])
def test_a_damaged_film_is_read_or_refused(tmp_path, kind):
    content = write_film(tmp_path / f"x.{kind}", [i / 30 for i in range(20)], "mpeg4").read_bytes()

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=30), st.floats(0.05, 1))
    def check(changes, part):
        damaged = bytearray(content)
        for place, byte in changes:
            damaged[place] = byte
        path = tmp_path / f"damaged.{kind}"
        path.write_bytes(damaged[: int(len(damaged) * part)])
        try:
            assert 1 <= len(load_frames(path, max_frames=3)) <= 3
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 400

    check()


def test_the_pixels_of_all_chosen_frames_of_a_folder_are_limited(tmp_path, monkeypatch):
    for i in range(9):
        Image.new("L", (10, 10)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(media, "MAX_FOLDER_PIXELS", 400)
    assert len(load_frames(tmp_path, max_frames=4)) == 4
    assert "its frames have more than 400 pixels" in refusal(load_frames, tmp_path, max_frames=5)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "missing"])
def test_what_is_no_file_in_a_folder_of_frames_is_refused(tmp_path, kind):
    Image.new("L", (9, 9)).save(tmp_path / "1.png")
    place = tmp_path / "2.png"
    target = {"device": "/dev/zero", "loop": place, "missing": tmp_path / "nowhere"}.get(kind)
    os.mkfifo(place) if kind == "pipe" else place.mkdir() if kind == "folder" else place.symlink_to(target)
    assert "2.png" in refusal(load_frames, tmp_path)


@pytest.mark.parametrize("ratio", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("kind", ["folder", "animation"])
@pytest.mark.parametrize("reader", [load_video, lambda *request: sources.open_video(*request)[0]])
def test_one_large_frame_is_in_memory_at_a_time(tmp_path, monkeypatch, reader, kind, ratio):
    frames = [Image.new("RGB", (40, 30 + 10 * (i % 2)), (50 * i, 0, 0)) for i in range(5)]
    for i, frame in enumerate(frames):
        frame.save(tmp_path / f"{i}.png")
    path = tmp_path
    if kind == "animation":
        path = tmp_path / "all.gif"
        frames = [grey_image(5 * i) for i in range(5)]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000)
    opened, alive = video.open_image, []

    def counted(source):
        assert not any(reference() for reference in alive)
        image = opened(source)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(video, "open_image", counted)
    config = replace(VitaConfig.preset("demo"), image_aspect_ratio=ratio)
    assert len(reader(Request("", video=path), config)) == len(alive) == 5
