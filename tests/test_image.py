"""Image files become tiles: which grid, which pixels, which files are read. Run: ``pytest tests/test_image.py``"""

import io
import json
import random
import struct
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vita_ref.files import media, pictures
from vita_ref.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    _all_grids,
    load_square,
    load_tiles,
    open_image,
    tile_grid,
)

few = settings(max_examples=40, deadline=None)


def noise_image(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_bytes(image, kind="PNG", **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def levels_of(image):
    """The pixels as integers [height, width, 3]."""
    return np.array(image).astype(int)


# ---- the grid


def test_the_grid_is_that_of_upstream():
    rows = json.loads((GOLDEN / "cases" / "tiling.json").read_text())
    for row in rows:
        bounds = {"tile": row["image_size"], "max_tiles": row["max_num"], "min_tiles": row["min_num"]}
        assert list(tile_grid(row["width"], row["height"], **bounds)) == row["grid"], row
    assert len(rows) > 500


def slow_grid(width, height, tile, grids):
    """The rule in two passes: the nearest aspect ratio, then the last of the grids that are not too large."""
    nearest = min(abs(width / height - c / r) for c, r in grids)
    first, *others = [(c, r) for c, r in grids if abs(width / height - c / r) == nearest]
    return [first, *((c, r) for c, r in others if 2 * width * height > tile * tile * c * r)][-1]


def all_grids(low, high, order=None):
    """Every grid of low to high tiles, smaller ones first. ``order`` sorts grids of equally many tiles."""
    grids = [(c, r) for c in range(1, high + 1) for r in range(1, high + 1) if low <= c * r <= high]
    return sorted(sorted(grids, key=order), key=lambda g: g[0] * g[1])


def between(grid, other, scale=1):
    """Width and height of an image whose aspect ratio is the mean of those of two grids."""
    (a, b), (c, d) = grid, other
    return (a * d + c * b) * scale, 2 * b * d * scale


@few
@given(st.data(), st.integers(1, 16), st.integers(1, 500), st.booleans())
def test_with_min_tiles_1_the_order_among_grids_of_equally_many_tiles_has_no_effect(data, high, scale, tie):
    shuffled = all_grids(1, high, order=lambda grid: random.Random(f"{scale} {grid}").random())
    if tie:
        size = between(data.draw(st.sampled_from(shuffled)), data.draw(st.sampled_from(shuffled)), scale)
    else:
        size = data.draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    assert tile_grid(*size, tile=70, max_tiles=high) == slow_grid(*size, 70, shuffled)


def grid_set(low, high):
    """Upstream's set of grids, filled in upstream's order."""
    sides = [(i, j) for n in range(low, high + 1) for i in range(1, n + 1) for j in range(1, n + 1)]
    return {(i, j) for i, j in sides if low <= i * j <= high}


def test_with_more_min_tiles_grids_of_equally_many_tiles_have_the_order_of_a_set():  # quirk
    times_that_the_order_matters = 0
    for low in range(2, 11):
        for high in range(low, 12):
            as_in_set = sorted(grid_set(low, high), key=lambda grid: grid[0] * grid[1])
            as_in_list = all_grids(low, high)
            assert set(as_in_list) == set(as_in_set)
            for grid in as_in_list:
                for other in as_in_list:
                    size = between(grid, other)
                    want = slow_grid(*size, 448, as_in_set)
                    assert tile_grid(*size, tile=448, max_tiles=high, min_tiles=low) == want
                    times_that_the_order_matters += want != slow_grid(*size, 448, as_in_list)
    assert times_that_the_order_matters > 0


@few
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12), st.integers(0, 12))
def test_the_number_of_tiles_is_within_the_limits_and_the_aspect_ratio_is_the_nearest(width, height, low, more):
    high = low + more
    columns, rows = tile_grid(width, height, max_tiles=high, min_tiles=low)
    assert low <= columns * rows <= high
    distances = [abs(width / height - c / r) for c, r in all_grids(low, high)]
    assert abs(width / height - columns / rows) == min(distances)


def test_among_grids_of_one_ratio_the_largest_wins_of_which_the_image_fills_more_than_half():
    assert tile_grid(800, 800) == (2, 2)  # the example of the docstring
    assert tile_grid(448, 448) == (1, 1)
    assert tile_grid(951, 951) == (3, 3)  # 951 * 951 = 904401 is just more than 903168
    assert tile_grid(950, 950) == (2, 2)  # 902500 is not
    assert tile_grid(10, 20) == (1, 2)  # a nearer ratio wins even for a small image


@pytest.mark.parametrize(
    ("size", "bounds", "message"),
    [
        ((0, 5), {}, "0 x 5"),
        ((5, 5), {"tile": 0}, "tile must be at least 1 pixel, got 0"),
        ((5, 5), {"max_tiles": 0}, "min_tiles=1 and max_tiles=0"),
        ((5, 5), {"min_tiles": 7, "max_tiles": 6}, "min_tiles=7 and max_tiles=6"),
    ],
)
def test_impossible_grids_are_refused(size, bounds, message):
    with pytest.raises(ValueError, match=message):
        tile_grid(*size, **bounds)


# ---- the pixels


@pytest.mark.parametrize("number", [0, 1])
def test_the_pixels_are_those_of_upstream(number):
    want = case(f"image_preprocess_{number}")
    image, tile = Image.fromarray(want["image"].numpy()), want["tiles_pixel_values"].shape[-1]
    got = {
        "tiles_pixel_values": load_tiles(image, tile=tile, max_tiles=int(want["max_num"])),
        "square_pixel_values": load_square(image, tile=tile),
        "pad_pixel_values": load_square(image, tile=tile, fit="pad"),
    }
    for name, pixels in got.items():
        torch.testing.assert_close(pixels, want[name], atol=1e-5, rtol=0)


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(3, 9))
def test_tiles_are_in_row_order_and_the_thumbnail_is_last(columns, rows, tile):
    numbers = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)  # the grey level of each tile
    image = Image.fromarray(numbers.repeat(tile, 0).repeat(tile, 1)[..., None].repeat(3, 2))
    tiles = load_tiles(image, tile=tile, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert tiles.shape == (rows * columns + (rows * columns > 1), 3, tile, tile)
    for number in range(rows * columns):
        torch.testing.assert_close(tiles[number], torch.full_like(tiles[number], number))
    if rows * columns > 1:
        thumbnail = levels_of(image.resize((tile, tile)))
        torch.testing.assert_close(tiles[-1], torch.tensor(thumbnail).permute(2, 0, 1).float())


def test_each_channel_is_normalised_by_its_own_mean_and_deviation():
    tiles = load_tiles(Image.new("RGB", (8, 8), (0, 255, 51)), tile=4)
    want = [(level - mean) / std for level, mean, std in zip((0, 1, 0.2), IMAGENET_MEAN, IMAGENET_STD)]
    assert tiles.dtype == torch.float32
    torch.testing.assert_close(tiles[0, :, 2, 3], torch.tensor(want))
    own = load_square(Image.new("RGB", (8, 8), (0, 255, 51)), tile=4, mean=(0.5, 0.25, 0.1), std=(0.5, 0.75, 0.1))
    torch.testing.assert_close(own[0, :, 0, 0], torch.tensor([-1.0, 1.0, 1.0]))


def channels_first(levels):
    return torch.tensor(levels).permute(2, 0, 1).float()


@few
@given(st.integers(2, 9), st.integers(0, 9), st.booleans())
def test_crop_takes_the_middle_and_pad_adds_the_mean_colour_around_the_whole(short, more, upright):
    long, offset = short + more, more // 2
    image = noise_image(long, short) if upright else noise_image(short, long)
    levels, options = levels_of(image), {"mean": (0.5, 0.3, 0.9), "std": (1 / 255,) * 3}
    mean = torch.tensor(options["mean"]).view(3, 1, 1) * 255

    middle = levels[offset : offset + short] if upright else levels[:, offset : offset + short]
    crop = load_square(image, tile=short, **options)[0] + mean
    torch.testing.assert_close(crop, channels_first(middle), atol=1e-3, rtol=0)

    square = np.full((long, long, 3), (127, 76, 229))  # the mean colour
    if upright:
        square[:, offset : offset + short] = levels
    else:
        square[offset : offset + short] = levels
    pad = load_square(image, tile=long, fit="pad", **options)[0] + mean
    torch.testing.assert_close(pad, channels_first(square), atol=1e-3, rtol=0)


@few
@given(st.integers(1, 30), st.integers(1, 12))
def test_tiles_crop_and_pad_agree_on_a_square_image(side, edge):
    tile = load_tiles(noise_image(side, side), tile=edge, max_tiles=1)
    for fit in ("crop", "pad"):
        assert torch.equal(load_square(noise_image(side, side), tile=edge, fit=fit), tile)


def test_a_long_thin_image_and_wrong_options_are_refused_by_load_square():
    for fit in ("crop", "pad"):
        with pytest.raises(ValueError, match="20000 x 1 is too long and thin"):
            load_square(Image.new("RGB", (20000, 1)), fit=fit)
    assert load_tiles(Image.new("RGB", (20000, 1)), tile=7).shape == (13, 3, 7, 7)
    with pytest.raises(ValueError, match="'crop' or 'pad', got 'middle'"):
        load_square(noise_image(3, 3), fit="middle")
    with pytest.raises(ValueError, match="tile must be at least 1"):
        load_square(noise_image(3, 3), tile=0)


# ---- the files that are read


STORED = {  # EXIF orientation -> how a file with this orientation stores an upright image
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_an_image_is_upright_for_every_exif_orientation(orientation, kind):
    upright, exif = noise_image(5, 7), Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.array(upright))))
    file = io.BytesIO(as_bytes(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    want = load_tiles(upright, tile=6)
    assert torch.equal(load_tiles(file, tile=6), want)
    assert torch.equal(load_tiles(Image.open(file), tile=6), want)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animated_file_gives_its_first_frame_and_an_animated_image_its_current_one(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = io.BytesIO(as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.array_equal(open_image(file), frames[0])
    moved = Image.open(file)
    moved.seek(2)
    assert np.array_equal(open_image(moved), frames[2])


def test_levels_of_more_than_8_bits_and_floats_are_scaled_and_not_clipped():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = np.array(Image.fromarray(levels).convert("RGB"))
    deep, wide = (Image.fromarray(levels.astype(kind) * 257) for kind in (np.uint16, np.int32))
    assert (deep.mode, wide.mode) == ("I;16", "I")
    for file in (as_bytes(deep), as_bytes(deep, "TIFF"), as_bytes(wide, "TIFF")):
        assert np.array_equal(open_image(io.BytesIO(file)), grey)
    big_endian = (levels.astype(int) * 257).astype(">u2").tobytes()
    assert np.array_equal(open_image(Image.frombytes("I;16B", (16, 16), big_endian)), grey)
    floats = levels.astype(np.float32)
    assert np.array_equal(open_image(Image.fromarray(floats)), grey)
    assert np.array_equal(open_image(Image.fromarray(floats / 255)), grey)
    odd = Image.fromarray(np.array([[-3.0, 300.0, 2.0]], dtype=np.float32))
    assert levels_of(open_image(odd))[0, :, 0].tolist() == [0, 255, 2]


def test_transparent_pixels_are_drawn_on_white():
    sheet = Image.new("RGBA", (4, 1), (200, 0, 0, 255))
    sheet.putpixel((1, 0), (200, 0, 0, 0))
    sheet.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black
    assert levels_of(open_image(sheet))[0].tolist() == [[200, 0, 0], [255] * 3, [204] * 3, [200, 0, 0]]
    grey = open_image(io.BytesIO(as_bytes(sheet.convert("LA"))))
    assert levels_of(grey)[0, 1:3].tolist() == [[255] * 3, [204] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    file = as_bytes(palette, "GIF", transparency=0)
    assert levels_of(open_image(io.BytesIO(file)))[0].tolist() == [[255] * 3, [50, 60, 70]]
    keyed = as_bytes(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), transparency=(1, 2, 3))
    assert levels_of(open_image(io.BytesIO(keyed)))[0].tolist() == [[255] * 3, [4, 5, 6]]


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B", "I;16L"),
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image = open_image(Image.new(mode, (5, 3)))
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_cmyk_grey_and_black_and_white_keep_their_colours():
    assert levels_of(open_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]
    assert levels_of(open_image(Image.new("L", (1, 1), 77)))[0, 0].tolist() == [77] * 3
    assert levels_of(open_image(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3


def test_a_path_a_string_an_open_file_and_a_pil_image_give_the_same(tmp_path):
    path, image = tmp_path / "x.png", noise_image(6, 9)
    image.save(path)
    read_before = io.BytesIO(path.read_bytes())
    read_before.seek(11)
    with path.open("rb") as file:
        for source in (path, str(path), file, read_before, image):
            assert np.array_equal(open_image(source), image)
        assert not file.closed


def test_a_given_pil_image_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(as_bytes(noise_image(5, 7), exif=exif)))
    open_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.size == (7, 5) and image.getexif()[0x0112] == 6
    plain = noise_image(5, 7)
    open_image(plain).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(plain, noise_image(5, 7))


# ---- the files that are refused


def refusal(source):
    """The message, which must be one line."""
    with pytest.raises(ValueError) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_message_names_the_file_and_the_reason(tmp_path):
    path = tmp_path / "x.jpg"
    assert refusal(path) == f"cannot read {path}: No such file or directory"
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    for content in (b"", b"not an image\n"):
        path.write_bytes(content)
        assert refusal(str(path)) == f"cannot read {path}: it is not in a format that Pillow reads"
    file = io.BytesIO(b"not an image")
    assert refusal(file).startswith("cannot read the given image: ")
    file.name = "standard input"
    assert refusal(file).startswith("cannot read standard input: ")
    assert "got NoneType" in refusal(None)
    assert "got Tensor" in refusal(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_the_first_half_of_a_file_is_refused(tmp_path, kind):
    whole = as_bytes(noise_image(40, 50), kind)
    path = tmp_path / "half"
    path.write_bytes(whole[: len(whole) // 2])
    assert f"cannot read {path}: " in refusal(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    noise_image(40, 50).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert "decompression bomb" in refusal(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO"])
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_gives_an_image_or_a_value_error(kind):
    intact, draw, refusals = as_bytes(noise_image(20, 25), kind), np.random.default_rng(0), 0
    assert open_image(io.BytesIO(intact)).mode == "RGB"
    for _ in range(60):
        damaged = bytearray(intact)
        for place in draw.integers(0, min(len(intact), 300), 3):
            damaged[place] = draw.integers(256)
        try:
            assert open_image(io.BytesIO(damaged)).mode == "RGB"
        except ValueError as error:
            refusals += 1
            assert str(error).startswith("cannot read the given image: ") and "\n" not in str(error)
    assert refusals > 0


@pytest.mark.parametrize("error", [EOFError, SyntaxError, TypeError, KeyError, ZeroDivisionError, RuntimeError,
                                   AttributeError, AssertionError, MemoryError, struct.error, zlib.error])  # fmt: skip
def test_every_error_that_pillow_raises_for_damaged_files_becomes_a_value_error(monkeypatch, error):
    def fail(source):
        raise error("two\nlines")

    monkeypatch.setattr(Image, "open", fail)
    file = io.BytesIO()
    file.name = "x.png"
    message = refusal(file)
    assert message.startswith("cannot read x.png: ") and "two" in message


def test_without_pillow_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refusal("x.png") == "images need Pillow: pip install Pillow"


# ---- limits, arrays and hostile files

hostile = settings(max_examples=60, deadline=None, derandomize=True)


@hostile
@given(st.integers(1, 40), st.integers(0, 60))
def test_grids_have_the_order_in_which_upstream_adds_them_to_its_set(low, more):
    want = sorted(grid_set(low, low + more), key=lambda grid: grid[0] * grid[1])
    assert _all_grids(low, low + more) == want


def test_thousands_of_tiles_are_considered_in_seconds_and_more_are_refused():
    start = time.process_time()
    columns, rows = tile_grid(801, 799, max_tiles=media.MAX_TILES)
    assert columns * rows <= media.MAX_TILES and time.process_time() - start < 3
    with pytest.raises(ValueError, match="max_tiles must be at most 4096, got 4097"):
        tile_grid(801, 799, max_tiles=media.MAX_TILES + 1)
    with pytest.raises(ValueError, match="1 x 400 tiles of 448 x 448 pixels are too many: lower max_tiles"):
        load_tiles(Image.new("RGB", (1, 400)), max_tiles=400)


@hostile
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 3, 4]), st.booleans())
def test_a_uint8_array_gives_what_its_pil_image_gives(height, width, channels, is_strided):
    shape = (height, width * 2) if channels is None else (height, width * 2, channels)
    levels = np.random.default_rng(width).integers(0, 256, shape, dtype=np.uint8)
    levels = levels[:, ::2] if is_strided else levels
    assert np.array_equal(open_image(levels), open_image(Image.fromarray(levels.copy())))
    if channels == 3:
        assert np.array_equal(open_image(levels), levels)


@hostile
@given(
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.sampled_from(["uint8", "int64", "float32", "bool", "uint16"]),
)
def test_an_array_of_another_shape_or_dtype_is_refused_in_one_line(shape, dtype):
    array = np.zeros(shape, dtype)
    is_image = dtype == "uint8" and array.size > 0 and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    if is_image:
        assert open_image(array).size == (shape[1], shape[0])
    else:
        assert "given image" in refusal(array)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (3, 2), (6, 4)])
def test_a_float_image_with_a_pixel_that_is_not_finite_is_refused_with_its_name(tmp_path, bad, place, monkeypatch):
    monkeypatch.setattr(pictures, "BAND_PIXELS", 12)
    levels = np.zeros((7, 5), np.float32)
    levels[place] = bad
    Image.fromarray(levels).save(tmp_path / "x.tif")
    assert refusal(tmp_path / "x.tif") == f"cannot read {tmp_path / 'x.tif'}: it has NaN or infinite pixels"
    levels[place] = 0.5
    Image.fromarray(levels).save(tmp_path / "x.tif")
    assert levels_of(open_image(tmp_path / "x.tif"))[place].tolist() == [128] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I", "F", "I;16", "I;16B", "La", "RGBa", "PA"])
def test_an_image_that_is_converted_in_bands_is_the_one_that_is_converted_at_once(mode, monkeypatch):
    noise = noise_image(23, 17)
    noise.putalpha(noise.getchannel(0))
    levels = np.random.default_rng(0).integers(0, 65536, (23, 17))
    wide = {"I": np.int32, "F": np.float32, "I;16": np.uint16}
    if mode in wide:
        image = Image.fromarray((levels / 300 if mode == "F" else levels).astype(wide[mode]))
    elif mode == "I;16B":
        image = Image.frombytes(mode, (17, 23), levels.astype(">u2").tobytes())
    elif mode in ("P", "PA"):
        image = noise.convert("P")
        image.info["transparency"] = 3
        image = image.convert("PA") if mode == "PA" else image
    else:
        image = noise.convert("LA" if mode == "La" else "RGBA").convert(mode)
    at_once = np.array(open_image(image))
    monkeypatch.setattr(pictures, "BAND_PIXELS", 40)
    assert np.array_equal(open_image(image), at_once)
    assert len(np.unique(at_once)) > 20


def edited(data, intact):
    """A copy of a file with some of its bytes changed, left out or added, as hypothesis draws them."""
    content = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["change", "insert", "delete", "end"]))
        if kind == "end":
            del content[place:]
        elif kind == "delete":
            del content[place : place + data.draw(st.integers(1, 9))]
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            more = data.draw(st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]))
            content[place : place + len(more)] = more
    return bytes(content)


INTACT = {kind: as_bytes(noise_image(20, 25), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP")}
INTACT |= {"TIFF": as_bytes(noise_image(20, 25), "TIFF", compression="tiff_lzw")}


@pytest.mark.parametrize("kind", INTACT)
@pytest.mark.filterwarnings("ignore")
def test_an_edited_file_gives_an_image_or_one_line_and_nothing_on_standard_error(kind, capfd):
    @hostile
    @given(st.data())
    def check(data):
        try:
            assert open_image(io.BytesIO(edited(data, INTACT[kind]))).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith("cannot read the given image: ")
            assert str(error).isprintable() and len(str(error)) < 250

    check()
    assert capfd.readouterr().err == ""


def png_of_size(width, height, depth):
    """A PNG of zeros without its end whose header says this size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(60))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(x)) + n + x + struct.pack(">I", zlib.crc32(n + x)) for n, x in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@hostile
@given(*[st.sampled_from([0, 1, 2, 40_000, 2**16, 2**20, 2**31 - 1, 2**32 - 1])] * 2, st.sampled_from([8, 16]))
@pytest.mark.filterwarnings("ignore")
def test_the_sizes_that_a_header_claims_give_an_image_or_one_line(width, height, depth):
    try:
        image = open_image(io.BytesIO(png_of_size(width, height, depth)))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert image.size == (width, height) and width * height <= media.MAX_PIXELS


@hostile
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=60))
def test_a_file_name_is_one_printable_line_in_the_message(name):
    message = refusal(f"/no such folder/{name}")
    assert message.isprintable() and message.startswith("cannot read /no such folder/")
    assert not name.isprintable() or len(name) > 60 or name in message


def test_a_stream_that_cannot_seek_is_read_within_a_limit(monkeypatch):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise io.UnsupportedOperation("seek")

    image = noise_image(6, 9)
    assert np.array_equal(open_image(Pipe(as_bytes(image))), image)
    with open("/dev/zero", "rb") as zeros:
        assert "not in a format" in refusal(zeros)
    monkeypatch.setattr(media.read_bounded, "__defaults__", (50, None))
    assert refusal(Pipe(as_bytes(image))) == "cannot read the given image: it has more than 50 bytes"
    assert "expected a regular file" in refusal("/dev/zero")


def test_an_image_without_pixels_is_refused():
    assert "at least 1 pixel, got 0 x 5" in refusal(Image.new("RGB", (0, 5)))
    assert "at least 1 pixel, got 5 x 0" in refusal(np.zeros((0, 5), np.uint8))
