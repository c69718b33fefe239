"""What each position of a prompt holds: a token, a part of a picture, or a stretch of a sound.

    prepared ids, segments of the splice, pictures, sounds -> a `Position` for each column of the decoder

S positions of the prompt.

Test: ``pytest tests/analysis/test_look.py``
"""

from dataclasses import asdict, dataclass

from ..request import num_patches
from ..splice import runs

READ_BY_SUBSAMPLING = 6  # one encoder position reads frames 4n to 4n + 6
FRAME_MIDDLE = 0.0125  # seconds from the start of a frame of 25 ms to its middle


@dataclass(frozen=True)
class Position:
    """One position of the prompt or of the answer. What does not apply to its kind is None.

    Attributes:
        kind: "text", "image", "audio" or "answer".
        text: the text of a token, or a description of the place.
        position_id: the number that rotates queries and keys. Positions with a shared stride have the same one.
        shared: whether the position before it has the same position id.
        special: whether the token is one of the tokenizer's special ones.
        medium: which picture or sound it belongs to.
        tile, row, column: of a picture; ``tile`` counts the tiles and then the thumbnail.
        box: left, top, right, bottom in the whole picture, from 0 to 1.
        patches: the numbers of the vision tower's patches that it holds, without the class token.
        start, end: seconds in a sound, around the middle of the frames that it reads.
    """

    index: int
    kind: str
    text: str
    position_id: int
    token_id: int | None = None
    shared: bool = False
    special: bool = False
    medium: int | None = None
    tile: int | None = None
    row: int | None = None
    column: int | None = None
    box: tuple | None = None
    patches: tuple | None = None
    start: float | None = None
    end: float | None = None

    def as_dict(self):
        """The fields that apply."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}


def positions_of(vita, prepared, segments, ids, pictures, sounds):
    """The positions of a prompt. ``ids`` are the position ids of the S columns, as a list."""
    config, found = vita.config, []
    tokens = {"image": config.image_token_index, "audio": config.audio_token_index}
    places = iter(runs(prepared.ids, tokens))
    images, audios = iter(enumerate(pictures)), iter(enumerate(sounds))
    for kind, start, end in segments:
        _, first, last = next(places)
        if kind == "text":
            parts = [text_fields(vita, token) for token in prepared.ids[first:last].tolist()]
        elif kind == "image":
            parts = picture_fields(config.vision, *next(images))
        else:
            parts = sound_fields(config, *next(audios), end - start)
        for index, fields in zip(range(start, end), parts, strict=True):
            shared = index > 0 and ids[index] == ids[index - 1]
            found.append(Position(index, kind, position_id=ids[index], shared=shared, **fields))
    return found


def text_of(vita, token):
    """The text of one token as it is, with its leading space."""
    tokenizer = vita.tokenizer
    if tokenizer is None or token not in tokenizer:
        return f"[{token}]"
    return tokenizer.piece(token).decode("utf-8", "replace")


def text_fields(vita, token):
    special = vita.tokenizer is not None and token in vita.tokenizer.special_ids
    return {"text": text_of(vita, token), "token_id": token, "special": special}


def tile_boxes(picture):
    """The place of each tile in its picture: (left, top, right, bottom) from 0 to 1. Tiles of a tensor stand side by side."""
    columns, rows = picture.grid
    places = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    return places + [(0.0, 0.0, 1.0, 1.0)] * picture.thumbnail


def picture_fields(vision, number, picture):
    """The fields of each position of a picture, tile by tile, row by row."""
    tiles = picture.tiles
    columns, rows = (tiles.shape[axis] // vision.patch_size // vision.shuffle for axis in (3, 2))
    wide, side = columns * vision.shuffle, range(vision.shuffle)
    assert num_patches(vision, tiles) == wide * rows * vision.shuffle
    for tile, (left, top, right, bottom) in enumerate(tile_boxes(picture)):
        where = f"picture {number + 1}" + (f", tile {tile + 1}" if len(tiles) > 1 else "")
        if vision.keep_class_token:
            yield {"text": f"{where}, class token", "medium": number, "tile": tile, "box": (left, top, right, bottom)}
        width, height = (right - left) / columns, (bottom - top) / rows
        for r in range(rows):
            for c in range(columns):
                box = (left + c * width, top + r * height, left + (c + 1) * width, top + (r + 1) * height)
                first = r * vision.shuffle * wide + c * vision.shuffle
                yield {
                    "text": f"{where}, row {r + 1}, column {c + 1}", "medium": number, "tile": tile, "row": r,
                    "column": c, "box": box, "patches": tuple(first + y * wide + x for y in side for x in side),
                }  # fmt: skip


def sound_fields(config, number, sound, count):
    """The fields of each position of a sound. Learned prompts stand in front; ready embeddings have no times."""
    prompts = config.audio.num_prompts if config.audio else 0
    is_bank = config.audio is not None and sound.bank.shape[-1] == config.audio.num_mel_bins
    for i in range(count):
        where = f"sound {number + 1}"
        if not is_bank:
            yield {"text": f"{where}, row {i + 1}", "medium": number}
        elif i < prompts:
            yield {"text": f"{where}, learned prompt {i + 1}", "medium": number}
        else:
            middle = middle_frame(i - prompts, config.audio.adapter_kernel_size) * config.audio.frame_shift / 1000 + FRAME_MIDDLE
            start, end = max(0.0, middle - 0.04), middle + 0.04
            yield {"text": f"{where}, {start:.2f} to {end:.2f} s", "medium": number, "start": start, "end": end}


def middle_frame(place, kernel):
    """The middle of the frames that position n of a sound reads through the convolutions: 8n to 8n + 22 for a kernel of 5."""
    return 8 * place + (4 * (kernel - 1) + READ_BY_SUBSAMPLING) / 2


def words(positions):
    """The text positions as groups that a reader takes for words: lists of indices.

    A word begins with a space, after a special token or medium, or where letters and other characters meet.
    """
    groups, before = [], None
    for p in positions:
        if p.kind == "text":
            joined = (
                before is not None and before.kind == "text" and p.index == before.index + 1
                and not (p.special or before.special) and not p.text[:1].isspace()
                and p.text[:1].isalnum() == before.text[-1:].isalnum()
            )  # fmt: skip
            if joined:
                groups[-1].append(p.index)
            else:
                groups.append([p.index])
        before = p
    return groups
