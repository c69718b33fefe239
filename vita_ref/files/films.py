"""Film files, which FFmpeg decodes through ``av``: the times of the frames, and the chosen frames as upright images.

Test: ``pytest tests/test_video.py``
"""

import numpy as np

from .media import MAX_FILM_PIXELS, MAX_PIXELS, check_held, cut

TURNS = {  # x and y are swapped, the new x is mirrored, the new y is mirrored -> the same for Pillow
    (False, False, False): None,
    (False, True, False): "FLIP_LEFT_RIGHT",
    (False, False, True): "FLIP_TOP_BOTTOM",
    (False, True, True): "ROTATE_180",
    (True, False, False): "TRANSPOSE",
    (True, True, False): "ROTATE_270",
    (True, False, True): "ROTATE_90",
    (True, True, True): "TRANSVERSE",
}

# FFmpeg's names of the containers that hold films; one name of a family selects it
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,flv,ogg,asf,gif,apng,webp_pipe,"
    "ivf,mxf,nut,rm,wtv,dv,swf,vob,yuv4mpegpipe,av1,obu,wav,mp3,flac,aac"  # sounds: to say that they have no video
)


def times(items):
    """The times of packets or frames in seconds after the first, sorted; all None if one has none."""
    times = [None if item.pts is None else float(item.pts * item.time_base) for item in items]
    if None in times:
        return [None] * len(times)
    first = min(times, default=0)
    return sorted(time - first for time in times)


def is_constant(times, fps):
    """Whether no frame is half a frame away from its time at a constant rate, as far as times are known."""
    return fps > 0 and all(time is None or abs(time * fps - i) < 0.5 for i, time in enumerate(times))


def decode_frames(path, indices):
    """The frames with these sorted indices, upright; None if the film ends before the last of them."""
    frames, chosen = {}, set(indices)
    for i, frame in enumerate(decode(path)):
        if i in chosen:
            frames[i] = _upright(frame)
            check_held(frame.width, frame.height, len(frames), cut(path))
        if i == indices[-1]:
            return [frames[i] for i in indices]
    return None


def _upright(frame):
    """A frame as an image, turned and mirrored as its display matrix says: one of eight orientations.

    The matrix maps x to (a, b) and y to (c, d). Others are rounded to the nearest of the eight.
    """
    from PIL.Image import Transpose

    image, matrix = frame.to_image(), frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    is_swapped = abs(b) + abs(c) > abs(a) + abs(d)
    turn = TURNS[is_swapped, (c if is_swapped else a) < 0, (b if is_swapped else d) < 0]
    return image.transpose(Transpose[turn]) if turn else image


def decode(path):
    """All frames of a film. Raises: ValueError if they have too many pixels."""
    pixels = 0
    with open_film(path) as film:
        stream = film.streams.best("video")
        if stream.codec_context is None:
            raise ValueError(f"cannot read {cut(path)}: FFmpeg does not know its video codec")
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        for frame in film.decode(stream):
            pixels += frame.width * frame.height
            if pixels > MAX_FILM_PIXELS:
                raise ValueError(f"cannot read {cut(path)}: its frames have more than {MAX_FILM_PIXELS:,} pixels")
            yield frame


def open_film(path):
    """The film as a container of av. ``file:`` so that no name is read as an address.

    Only containers of films are read: FFmpeg would also draw text files, and follow playlists to other files.
    """
    import av

    options = {"format_whitelist": CONTAINERS}
    try:
        return av.open(f"file:{path}", metadata_errors="replace", options=options)  # a title is not always UTF-8
    except av.ArgumentError:
        raise ValueError(f"cannot read {cut(path)}: it is not in a video format that is read here (mp4, mkv, avi, ...)") from None
