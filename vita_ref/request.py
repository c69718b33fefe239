"""A request in words and files: its text as ids, its media as tensors, ready for `Vita.generate`.

    "What is this?", cat.jpg  ->  ids with a placeholder, tiles [N, 3, 448, 448]

Test: ``pytest tests/test_request.py``
"""

from dataclasses import dataclass, field

import torch

from . import fbank, image, video
from .audio import MIN_FRAMES, audio_token_count
from .prompt import encode_prompt, expand_video, place_media, render
from .splice import cut, splice

DESCRIBE = {"image": "Describe the image.", "video": "Describe the video."}


@dataclass
class Request:
    """What somebody asks, as they write it; media are paths, file objects, PIL images or tensors.

    ``prompt`` may hold placeholders, else they are put in front; None asks for a description of the
    picture or film, or lets a sound be the question. ``raw`` leaves out the chat template.
    """

    prompt: str | None = None
    images: list = field(default_factory=list)
    audios: list = field(default_factory=list)
    video: object = None
    system: str | None = None
    raw: bool = False
    max_tiles: int | None = None
    fps: float = 1.0
    max_frames: int = 16


@dataclass
class Prepared:
    """ids [S] long with placeholders; images a list of [tiles, 3, height, width], sounds a list of [T, M]."""

    ids: torch.Tensor
    images: list
    sounds: list


def prepare(request, config, tokenizer):
    """Reads a request's files and lays its text out for the model.

    Raises: ValueError for a file that does not open, a part that the checkpoint lacks, placeholders
    that do not match what is given, or nothing to answer.
    """
    heard = [source for source in request.audios if not isinstance(source, torch.Tensor)]  # ready rows need no ear
    if (request.images or request.video is not None) and config.vision is None:
        raise ValueError(f"this checkpoint cannot take pictures: {lack(config, 'vision')}")
    if heard and config.audio is None:
        raise ValueError(f"this checkpoint cannot take sounds: {lack(config, 'audio')}")
    if tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer (tokenizer.json, vocab.json and merges.txt, or tokenizer.model)")
    frames = [] if request.video is None else load_video(request, config)
    text = wording(request)
    videos = int(request.video is not None)
    text = place_media(text, len(request.images), len(request.audios), config.template, videos=videos)
    medium = "video" if videos else "image" if request.images else "lang"
    if not request.raw:
        messages = [{"role": "user", "content": text}]
        system = request.system
        if system is None:
            system = tokenizer.system_prompt
        text = render(messages, system=system, template=config.template, medium=medium)
    images = [load_image(source, request, config) for source in request.images]
    if frames:
        before = text[: text.find("<video>")].count("<image>")
        text, images = expand_video(text, len(frames)), [*images[:before], *frames, *images[before:]]
    sounds = [load_audio(source, config) for source in request.audios]
    ids = encode_prompt(
        text,
        tokenizer,
        images=len(images),
        audios=len(sounds),
        image_token_index=config.image_token_index,
        audio_token_index=config.audio_token_index,
    )
    if not ids:
        raise ValueError("the prompt is empty: there is nothing to answer")
    return Prepared(torch.tensor(ids), images, sounds)


def patches(vision, picture):
    """Patches of each tile of a picture [N, 3, height, width]."""
    return picture.shape[2] // vision.patch_size * (picture.shape[3] // vision.patch_size)


def features(vision, picture):
    """Positions that all tiles of a picture take in the prompt."""
    return len(picture) * (patches(vision, picture) // vision.shuffle**2 + vision.keep_class_token)


def hearing(config, sound):
    """Positions that a sound takes: those of its filter bank [T, M], or as many as a ready one [A, D] has rows."""
    ear = config.audio
    if sound.shape[-1] == config.decoder.hidden_size != (ear and ear.num_mel_bins):
        return len(sound)
    if len(sound) < MIN_FRAMES:
        raise ValueError(f"a sound of {len(sound)} filter-bank frames is too short: give at least {MIN_FRAMES}")
    return audio_token_count(len(sound)) + (ear.num_prompts if ear else 0)


def positions(config, asked):
    """Positions of one prepared request, by kind, and how many more do not fit into the longest prompt.

    Raises: ValueError for a sound that is too short, or placeholders that do not match.
    """
    spliced = splice(
        [asked.ids],
        lambda ids: torch.empty(len(ids), 0),
        [torch.empty(features(config.vision, picture), 0) for picture in asked.images],
        [torch.empty(hearing(config, sound), 0) for sound in asked.sounds],
        image_token=config.image_token_index,
        audio_token=config.audio_token_index,
    )
    kept = cut(spliced.segments[0], config.tokenizer_model_max_length)
    found = {kind: sum(b - a for k, a, b in kept if k == kind) for kind in ("text", "image", "audio")}
    total = sum(found.values())
    return found | {"total": total, "cut": int(spliced.lengths[0]) - total}


def fit(config, asked):
    """Refuses a prepared request whose end would be cut off, where the question stands.

    Raises: ValueError for it, and for what `positions` refuses.
    """
    found = positions(config, asked)
    if found["cut"]:
        whole, most = found["total"] + found["cut"], config.tokenizer_model_max_length
        raise ValueError(
            f"the prompt takes {whole} positions, {most} is the most for this checkpoint: "
            "give fewer pictures, fewer tiles of them (--max-tiles) or shorter sounds"
        )


def batch(ready):
    """Several prepared requests as the arguments that `Vita.inputs` and `Vita.generate` take."""
    images = [picture for p in ready for picture in p.images]
    sounds = [sound for p in ready for sound in p.sounds]
    audios = {"audios": sounds} if sounds else None
    return {"input_ids": [p.ids for p in ready], "images": images or None, "audios": audios}


def wording(request):
    """The question, or the one that goes without saying."""
    if request.prompt is not None:
        return request.prompt
    if request.audios:
        return ""
    if request.video is not None:
        return DESCRIBE["video"]
    if request.images:
        return DESCRIBE["image"]
    raise ValueError("a prompt is needed where there is no picture, video or sound")


def lack(config, part):
    """Why a part is not there."""
    return config.missing.get(part, f"it has no {part} part")


def load_image(source, request, config):
    """One picture as tiles [N, 3, side, side]; a tensor [3, Y, X] or [N, 3, Y, X] is taken as it is."""
    if isinstance(source, torch.Tensor):
        return source if source.dim() == 4 else source[None]
    c = config.vision
    tiles = config.max_tiles if request.max_tiles is None else request.max_tiles
    return image.load_tiles(source, tile=c.image_size, max_tiles=tiles, mean=c.image_mean, std=c.image_std)


def load_video(request, config):
    """The frames of a film, each [1, 3, side, side]; a tensor [F, 3, Y, X] is taken as it is."""
    if isinstance(request.video, torch.Tensor):
        return list(request.video.split(1))
    c, fit = config.vision, "pad" if config.image_aspect_ratio == "pad" else "crop"
    frames = video.load_frames(request.video, fps=request.fps, max_frames=request.max_frames)
    return [image.load_square(f, tile=c.image_size, fit=fit, mean=c.image_mean, std=c.image_std) for f in frames]


def load_audio(source, config):
    """One sound as its filter bank [T, M]; a tensor is taken as it is."""
    if isinstance(source, torch.Tensor):
        return source
    c = config.audio
    waveform, rate = fbank.load_sound(source)
    return fbank.log_mel(
        waveform,
        rate,
        num_mel_bins=c.num_mel_bins,
        frame_length=c.frame_length,
        frame_shift=c.frame_shift,
        target_rate=c.sample_rate,
    )
