"""What Pillow opens, and images of any mode as RGB.

Test: ``pytest tests/test_image.py``
"""

import io

import numpy as np

from .media import MAX_PICTURE_BYTES, check_pixels, check_regular, read_bounded

BAND_PIXELS = 1 << 22  # that are converted at once, to limit the memory
LEVELS = np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)  # 8 bits for each of 16; Pillow would clip at 255


def to_rgb(image):
    """A PIL image of any mode as RGB; an RGB image is returned itself. What needs much memory is done in bands."""
    from PIL import Image

    check_pixels(*image.size)
    if image.mode == "RGB" and not image.has_transparency_data:
        image.load()
        return image
    if not image.mode.startswith(("I", "F")) and not image.has_transparency_data:
        return image.convert("RGB")
    height = max(1, BAND_PIXELS // image.width)
    bands = [(0, top, image.width, min(top + height, image.height)) for top in range(0, image.height, height)]
    white = _white(image, bands) if image.mode == "F" else None
    rgb = Image.new("RGB", image.size)
    for band in bands:
        rgb.paste(_band_to_rgb(image.crop(band), white), band)
    return rgb


def _band_to_rgb(image, white):
    """A band of integers of more than 8 bits, of floats, or with transparency."""
    from PIL import Image

    if image.mode == "F":
        levels = np.rint(np.array(image, dtype=np.float64).clip(0, white) * (255 / white))
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray(LEVELS[np.array(image).clip(0, 65535)]).convert("RGB")
    if image.mode == "La":  # Pillow converts La to LA only
        image = image.convert("LA")
    paper = Image.new("RGBA", image.size, "white")  # upstream drops the alpha channel, which uncovers the colours below it
    return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")


def _white(image, bands):
    """The value that becomes 255 in an image of floats: 1, or 255 if any value is above 1. Pillow would clip at 255."""
    values = (np.array(image.crop(band)) for band in bands)
    extremes = [level for band in values for level in (band.min(), band.max())]  # NaN if a pixel is
    if not np.isfinite(extremes).all():
        raise ValueError("it has NaN or infinite pixels")
    return 1 if max(extremes) <= 1 else 255


def file_of(source):
    """What Pillow opens. A file object without `seek` is read whole."""
    if not hasattr(source, "read"):
        check_regular(source, MAX_PICTURE_BYTES)
        return source
    if hasattr(source, "seekable") and source.seekable():
        return source
    return io.BytesIO(read_bounded(source))
