"""From a checkpoint folder to a `Vita`: its config and tokenizer, the module without numbers, then the weights.

    config.json -> VitaConfig -> Vita on the meta device -> safetensors, strictly by name and shape -> Vita in eval mode

Test: ``pytest tests/test_loading.py``
"""

from dataclasses import replace
from pathlib import Path

import torch

from .files import checkpoint
from .files.folders import read_config
from .files.tokenizer import load_tokenizer
from .speech import Speech

PREFIXES = {  # of the module -> of the checkpoint
    "decoder.": "model.",
    "decoder.lm_head.": "lm_head.",
    "vision.": "model.vision_tower.vision_tower.",
    "projector.": "model.mm_projector.",
    "audio.": "model.audio_encoder.",
}
PART_PREFIXES = {"vision": ("model.vision_tower.", "model.mm_projector."), "audio": ("model.audio_encoder.",)}
SPEECH_FOLDERS = ("vita_tts_ckpt", "speech")  # in a checkpoint folder or beside it


def demo_folder():
    """The weights that come with the project: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    places = [here / "weights" / "demo", here.parent / "weights" / "demo"]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ValueError(f"the demo weights are missing (looked in {places[0]} and {places[1]}): name a folder with --model")


def load_vita(
    cls,
    folder=None,
    dtype=None,
    device="cpu",
    quantize=None,
    *,
    kernels="auto",
    vision_dir=None,
    audio_dir=None,
    speech_dir=None,
    split=False,
    pack=False,
    mmap=True,
    progress=None,
):
    """Builds ``cls`` (`Vita`) from a checkpoint folder; None is the demo.

    Args:
        dtype: a torch dtype; None is the config's.
        quantize: "int8" quantises the decoder's matrices as they are read.
        kernels: "plain" uses torch's products, "fast" those committed for this processor (see `scale`), "auto" fast
            ones for generation and plain ones for everything else.
        vision_dir, audio_dir: where a VITA-1.5 folder's vision and audio configs are.
        speech_dir: where ``decoder/`` and ``codec/`` are; None looks for `SPEECH_FOLDERS`.
        split: reads this process's part of the decoder only (see `scale.parallel`).
        pack: stores the decoder's matrices in the order in which oneDNN reads them (see `scale.products`).
        mmap: leaves weights that need no conversion in the file, which must not be overwritten meanwhile.
        progress: called with (tensors read, tensors in all).

    Raises: ValueError if the folder does not fit, with names.
    """
    from . import scale

    scale.check(kernels, quantize, pack)
    folder = demo_folder() if folder is None else Path(folder)
    config, files = read_folder(folder, vision_dir, audio_dir)
    with torch.device("meta"):
        vita = cls(config, load_tokenizer(folder))
    options = {"dtype": getattr(torch, config.dtype) if dtype is None else dtype, "device": device, "progress": progress}
    options |= {"ignored": unread_prefixes(config), "mmap": mmap and torch.device(device).type == "cpu"}
    options |= scale.install(vita, kernels=kernels, quantize=quantize, split=split, pack=pack)
    checkpoint.load_weights(vita, PREFIXES, files, **options)
    if speech_dir := find_speech(folder, speech_dir):
        vita.speech = Speech.from_pretrained(speech_dir, device=device)
        vita.config = replace(vita.config, speech=vita.speech.decoder.config)
    return vita.eval()


def read_folder(folder, vision_dir=None, audio_dir=None):
    """The config of a folder, and the file of each of its tensors."""
    config = read_config(folder, vision_dir=vision_dir, audio_dir=audio_dir)
    files = checkpoint.find_tensors(folder)
    return with_stored_vocabulary(config, files), files


def with_stored_vocabulary(config, files):
    """The config with the vocabulary size that a VITA folder's embeddings and head have.

    Upstream's loader resizes both to the tokenizer, so the config of a saved folder may have another number.
    """
    if config.template != "vita":
        return config
    names = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in files]
    rows = {checkpoint.read_shapes(Path(files[name]))[name][0] for name in names}
    return replace(config, decoder=replace(config.decoder, vocab_size=rows.pop())) if len(rows) == 1 else config


def unread_prefixes(config):
    """Checkpoint prefixes of the parts that are stored but cannot be built, because their configs are missing."""
    return [prefix for part in config.missing for prefix in PART_PREFIXES[part]]


def find_speech(folder, given=None):
    """The folder of the speech weights, None if there are none."""
    if given is not None:
        return given
    places = [place / name for name in SPEECH_FOLDERS for place in (Path(folder), Path(folder).resolve().parent)]
    return next((place for place in places if (place / "decoder" / "model.json").is_file()), None)
