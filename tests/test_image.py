"""Pictures into tiles. Run: ``pytest tests/test_image.py``"""

import io
import json
import random
import sys

import numpy as np
import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vita_ref.image import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_square,
    load_tiles,
    open_image,
    tile_grid,
)

few = settings(max_examples=40, deadline=None)


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_bytes(image, kind="PNG", **options):
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def values(image):
    return np.array(image).astype(int)


# Which grid


def test_grids_are_those_of_upstream():
    rows = json.loads((GOLDEN / "cases/tiling.json").read_text())
    for row in rows:
        bounds = {"tile": row["image_size"], "max_tiles": row["max_num"], "min_tiles": row["min_num"]}
        assert list(tile_grid(row["width"], row["height"], **bounds)) == row["grid"], row
    assert len(rows) > 500


def slow_grid(width, height, tile, grids):
    """The rule in two passes: the nearest shape, then the last of those that are large enough."""
    near = min(abs(width / height - c / r) for c, r in grids)
    equal = [(c, r) for c, r in grids if abs(width / height - c / r) == near]
    return [equal[0], *((c, r) for c, r in equal[1:] if 2 * width * height > tile * tile * c * r)][-1]


def all_grids(low, high, order):
    """Every grid of low to high tiles, smaller ones first, grids of as many tiles in an order to be drawn."""
    grids = [(c, r) for c in range(1, high + 1) for r in range(1, high + 1) if low <= c * r <= high]
    return sorted(sorted(grids, key=order), key=lambda g: g[0] * g[1])


def between(one, other, scale):
    """Width and height of a picture whose shape lies exactly between two grids."""
    (a, b), (c, d) = one, other
    return (a * d + c * b) * scale, 2 * b * d * scale


@few
@given(st.data(), st.integers(1, 16), st.integers(1, 500), st.booleans())
def test_from_one_tile_on_the_order_among_grids_of_one_size_decides_nothing(data, high, scale, tie):
    order = {g: random.Random(scale + g[0] * 100 + g[1]).random() for g in all_grids(1, high, None)}
    grids = all_grids(1, high, order.get)
    size = between(*data.draw(st.tuples(*[st.sampled_from(grids)] * 2)), scale)
    if not tie:
        size = data.draw(st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
    assert tile_grid(*size, tile=70, max_tiles=high) == slow_grid(*size, 70, grids)


def test_beyond_one_tile_the_order_among_grids_of_one_size_is_that_of_a_set():
    deciding = 0
    for low in range(2, 11):
        for high in range(low, 12):
            grids = {
                (i, j)
                for n in range(low, high + 1)
                for i in range(1, n + 1)
                for j in range(1, n + 1)
                if low <= i * j <= high
            }
            ordered, plain = sorted(grids, key=lambda g: g[0] * g[1]), all_grids(low, high, None)
            assert set(plain) == grids
            for one in plain:
                for other in plain:
                    size = between(one, other, 1)
                    assert tile_grid(*size, tile=448, max_tiles=high, min_tiles=low) == slow_grid(*size, 448, ordered)
                    deciding += slow_grid(*size, 448, ordered) != slow_grid(*size, 448, plain)
    assert deciding  # else the quirk could go


@few
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12), st.integers(0, 12))
def test_a_grid_has_as_many_tiles_as_allowed_and_the_nearest_shape(width, height, low, more):
    high = low + more
    columns, rows = tile_grid(width, height, max_tiles=high, min_tiles=low)
    assert low <= columns * rows <= high
    away = [abs(width / height - c / r) for c, r in all_grids(low, high, None)]
    assert abs(width / height - columns / rows) == min(away)


def test_of_equal_shapes_the_largest_that_the_picture_half_fills_wins():
    assert tile_grid(800, 800) == (2, 2)  # the worked example
    assert tile_grid(448, 448) == (1, 1)
    assert tile_grid(951, 951) == (3, 3)  # 951 * 951 = 904401 is just more than 903168
    assert tile_grid(950, 950) == (2, 2)  # 902500 is not
    assert tile_grid(10, 20) == (1, 2)  # a nearer shape wins however small the picture


@pytest.mark.parametrize(
    ("size", "bounds", "told"),
    [((0, 5), {}, "0 x 5"), ((5, 5), {"tile": 0}, "tile"), ((5, 5), {"max_tiles": 0}, "got 1 and 0"),
     ((5, 5), {"min_tiles": 7, "max_tiles": 6}, "got 7 and 6")],
)  # fmt: skip
def test_impossible_grids_are_refused(size, bounds, told):
    with pytest.raises(ValueError, match=told):
        tile_grid(*size, **bounds)


# Tiles and squares


@pytest.mark.parametrize("number", [0, 1])
def test_pixels_are_those_of_upstream(number):
    want = case(f"image_preprocess_{number}")
    image, edge = Image.fromarray(want["image"].numpy()), want["tiles_pixel_values"].shape[-1]
    got = {
        "tiles_pixel_values": load_tiles(image, tile=edge, max_tiles=int(want["max_num"])),
        "square_pixel_values": load_square(image, tile=edge),
        "pad_pixel_values": load_square(image, tile=edge, fit="pad"),
    }
    for name, pixels in got.items():
        torch.testing.assert_close(pixels, want[name], atol=1e-5, rtol=0)


@few
@given(st.integers(1, 4), st.integers(1, 3), st.integers(3, 9))
def test_tiles_come_row_by_row_and_the_thumbnail_last(columns, rows, edge):
    numbers = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns)
    drawn = numbers.repeat(edge, 0).repeat(edge, 1)[..., None].repeat(3, 2)
    tiles = load_tiles(Image.fromarray(drawn), tile=edge, mean=(0, 0, 0), std=(1 / 255,) * 3)
    assert tiles.shape == (rows * columns + (rows * columns > 1), 3, edge, edge)
    for number in range(rows * columns):
        torch.testing.assert_close(tiles[number], torch.full_like(tiles[number], number))
    if rows * columns > 1:
        small = values(Image.fromarray(drawn).resize((edge, edge)))
        torch.testing.assert_close(tiles[-1], torch.tensor(small).permute(2, 0, 1).float())


def test_levels_are_normalised_channel_by_channel():
    tiles = load_tiles(Image.new("RGB", (8, 8), (0, 255, 51)), tile=4)
    want = [(level - m) / s for level, m, s in zip((0, 1, 0.2), IMAGENET_MEAN, IMAGENET_STD)]
    assert tiles.dtype == torch.float32
    torch.testing.assert_close(tiles[0, :, 2, 3], torch.tensor(want))
    own = load_square(Image.new("RGB", (8, 8), (0, 255, 51)), tile=4, mean=(0.5, 0.25, 0.1), std=(0.5, 0.75, 0.1))
    torch.testing.assert_close(own[0, :, 0, 0], torch.tensor([-1.0, 1.0, 1.0]))


@few
@given(st.integers(2, 9), st.integers(0, 9), st.booleans())
def test_a_crop_is_the_middle_and_a_pad_is_the_whole_on_the_mean_colour(short, more, upright):
    size = (short + more, short) if upright else (short, short + more)
    levels, plain = values(image := picture(*size)), {"mean": (0.5, 0.3, 0.9), "std": (1 / 255,) * 3}
    mean = torch.tensor(plain["mean"]).view(3, 1, 1) * 255
    middle = levels[more // 2 :][:short] if upright else levels[:, more // 2 :][:, :short]
    crop = load_square(image, tile=short, **plain)[0] + mean
    torch.testing.assert_close(crop, torch.tensor(middle).permute(2, 0, 1).float(), atol=1e-3, rtol=0)

    canvas = np.full((short + more, short + more, 3), (127, 76, 229))
    (canvas[:, more // 2 :][:, :short] if upright else canvas[more // 2 :][:short])[:] = levels
    pad = load_square(image, tile=short + more, fit="pad", **plain)[0] + mean
    torch.testing.assert_close(pad, torch.tensor(canvas).permute(2, 0, 1).float(), atol=1e-3, rtol=0)


@few
@given(st.integers(1, 30), st.integers(1, 12))
def test_on_a_square_picture_every_way_to_one_tile_is_the_same(side, edge):
    tile = load_tiles(picture(side, side), tile=edge, max_tiles=1)
    for fit in ("crop", "pad"):
        assert torch.equal(load_square(picture(side, side), tile=edge, fit=fit), tile)


def test_what_no_square_can_be_made_of_is_refused():
    for fit in ("crop", "pad"):
        with pytest.raises(ValueError, match="20000 x 1 is too long a strip"):
            load_square(Image.new("RGB", (20000, 1)), fit=fit)
    assert load_tiles(Image.new("RGB", (20000, 1)), tile=7).shape == (13, 3, 7, 7)
    with pytest.raises(ValueError, match="'crop' or 'pad', got 'middle'"):
        load_square(picture(3, 3), fit="middle")
    with pytest.raises(ValueError, match="tile must be at least 1"):
        load_square(picture(3, 3), tile=0)


# Any file


STORED = {  # EXIF orientation -> how a camera that was held so stores an upright picture
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x.swapaxes(0, 1), 2), 8: lambda x: np.rot90(x, -1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_every_orientation_gives_the_upright_picture(orientation, kind):
    upright, exif = picture(5, 7), Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.array(upright))))
    file = io.BytesIO(as_bytes(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    want = load_tiles(upright, tile=6)
    assert torch.equal(load_tiles(file, tile=6), want)
    assert torch.equal(load_tiles(Image.open(file), tile=6), want)  # an image that knows how it lies


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_it_is_the_first_frame(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "lime")]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    file = io.BytesIO(as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **lossless))
    assert np.array_equal(open_image(file), frames[0])
    moved = Image.open(file)
    moved.seek(2)
    assert np.array_equal(open_image(moved), frames[2])


def test_sixteen_bits_are_scaled_and_not_clipped():
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
    odd = Image.fromarray(np.array([[np.nan, -3.0, np.inf, 300.0, 2.0]], dtype=np.float32))
    assert values(open_image(odd))[0, :, 0].tolist() == [0, 0, 255, 255, 2]


def test_what_is_transparent_becomes_white():
    sheet = Image.new("RGBA", (4, 1), (200, 0, 0, 255))
    sheet.putpixel((1, 0), (200, 0, 0, 0))
    sheet.putpixel((2, 0), (0, 0, 0, 51))  # a fifth of black
    assert values(open_image(sheet))[0].tolist() == [[200, 0, 0], [255] * 3, [204] * 3, [200, 0, 0]]
    grey = open_image(io.BytesIO(as_bytes(sheet.convert("LA"))))
    assert values(grey)[0, 1:3].tolist() == [[255] * 3, [204] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    file = as_bytes(palette, "GIF", transparency=0)
    assert values(open_image(io.BytesIO(file)))[0].tolist() == [[255] * 3, [50, 60, 70]]
    keyed = as_bytes(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)), transparency=(1, 2, 3))
    assert values(open_image(io.BytesIO(keyed)))[0].tolist() == [[255] * 3, [4, 5, 6]]


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B", "I;16L"),
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image = open_image(Image.new(mode, (5, 3)))
    assert (image.mode, image.size) == ("RGB", (5, 3))


def test_ink_and_grey_keep_their_looks():
    assert values(open_image(Image.new("CMYK", (1, 1), (0, 255, 255, 0))))[0, 0].tolist() == [255, 0, 0]
    assert values(open_image(Image.new("L", (1, 1), 77)))[0, 0].tolist() == [77] * 3
    assert values(open_image(Image.new("1", (1, 1), 1)))[0, 0].tolist() == [255] * 3


def test_a_path_a_string_an_open_file_and_an_image_are_the_same(tmp_path):
    path, image = tmp_path / "x.png", picture(6, 9)
    image.save(path)
    pipe = io.BytesIO(path.read_bytes())
    pipe.seek(11)  # someone has looked at its beginning
    with path.open("rb") as file:
        for source in (path, str(path), file, pipe, image):
            assert np.array_equal(open_image(source), image)
        assert not file.closed


def test_the_image_given_stays_as_it_was():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(as_bytes(picture(5, 7), exif=exif)))
    open_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.size == (7, 5) and image.getexif()[0x0112] == 6
    plain = picture(5, 7)
    open_image(plain).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(plain, picture(5, 7))


# No picture


def refused(source):
    with pytest.raises(ValueError) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_no_picture_is_named_with_the_reason(tmp_path):
    path = tmp_path / "x.jpg"
    assert refused(path) == f"cannot read {path}: No such file or directory"
    assert refused(tmp_path) == f"cannot read {tmp_path}: Is a directory"
    for content in (b"", b"no picture\n"):
        path.write_bytes(content)
        assert refused(str(path)) == f"cannot read {path}: it is not in a format that Pillow reads"
    named = io.BytesIO(b"no picture")
    assert "the picture given" in refused(named)
    named.name = "standard input"
    assert "standard input" in refused(named)
    assert "got NoneType" in refused(None)
    assert "got Tensor" in refused(torch.zeros(3, 4, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_half_a_picture_is_refused(tmp_path, kind):
    whole = as_bytes(picture(40, 50), kind)
    path = tmp_path / "half"
    path.write_bytes(whole[: len(whole) // 2])
    assert f"cannot read {path}: " in refused(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    picture(40, 50).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    assert "decompression bomb" in refused(tmp_path / "x.png")


KINDS = {kind: as_bytes(picture(20, 25), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO")}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=4))
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_a_picture_or_a_value_error(kind, damage):
    content = bytearray(KINDS[kind])
    for place, value in damage:
        content[place % min(len(content), 300)] = value
    try:
        assert open_image(io.BytesIO(content)).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("cannot read the picture given: ") and "\n" not in str(error)


def test_without_pillow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert refused("x.png") == "pictures need Pillow: pip install Pillow"
