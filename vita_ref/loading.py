"""From a checkpoint folder to a `Vita`: its config and tokenizer, the modules without values, then the weights.

    config.json -> VitaConfig -> Vita on the meta device -> safetensors, strictly by name and shape -> Vita in eval mode

Test: ``pytest tests/test_loading.py``
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from .checks.devices import as_device
from .files import checkpoint
from .files.folders import read_config
from .files.messages import one_line_errors, shown
from .files.names import PREFIXES, prefixes
from .files.tokenizer import load_tokenizer
from .speech import Speech

PART_PREFIXES = {"vision": ("model.vision_tower.", PREFIXES["projector."]), "audio": (PREFIXES["audio."],)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
DTYPES |= {"float": torch.float32, "half": torch.float16, "double": torch.float64}
SPEECH_FOLDERS = ("vita_tts_ckpt", "speech")  # in a checkpoint folder or beside it


def demo_folder():
    """The folder of the demo weights: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    places = [here / "weights" / "demo", here.parent / "weights" / "demo"]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise ValueError(f"there are no demo weights in {places[0]} or {places[1]}: name a folder with --model")


@one_line_errors
def load_vita(
    cls, folder=None, dtype=None, device="cpu", quantize=None, *, kernels="auto", vision_dir=None, audio_dir=None,
    speech_dir=None, split=False, pack=False, mmap=True, progress=None, check_finite=False,
):  # fmt: skip
    """Builds ``cls`` (`Vita`) from a checkpoint folder; None is the demo.

    Args:
        dtype: a torch dtype or its name, also in short (see `DTYPES`); None or "auto" is the config's.
        quantize: "int8" or "int4" quantises the decoder's matrices as they are read; a quantised folder needs no flag.
        kernels: "plain" uses torch's products, "fast" those committed for this processor (see `scale`), "auto" fast
            ones for generation and plain ones for everything else.
        vision_dir, audio_dir: the folders of a VITA-1.5 checkpoint's vision and audio configs.
        speech_dir: the folder with ``decoder/`` and ``codec/``; with None, `SPEECH_FOLDERS` are tried.
        split: reads this process's part of the decoder only (see `scale.parallel`).
        pack: stores the decoder's matrices in the order in which oneDNN reads them (see `scale.products`).
        mmap: maps weights that need no conversion into memory; their file must not be overwritten meanwhile.
        progress: called with (tensors read, tensors in all).
        check_finite: refuses weights that are NaN or infinite; each is read once more for it.

    Raises: ValueError with the names of missing or surplus files, tensors or settings.
    """
    from . import scale

    scale.check(kernels, quantize, pack)
    dtype, device = as_dtype(dtype), as_device(device)
    folder = demo_folder() if folder is None else as_folder(folder)
    config, files = read_config(folder, vision_dir=vision_dir, audio_dir=audio_dir), checkpoint.find_tensors(folder)
    table = prefixes(config, files)
    config = with_stored_vocabulary(checkpoint.stored_config(config, files, table), files)
    with torch.device("meta"):
        vita = cls(config, load_tokenizer(folder))
    options = {"dtype": as_dtype(config.dtype) if dtype is None else dtype, "device": device, "progress": progress}
    options |= {"ignored": unread_prefixes(config, table), "mmap": mmap and torch.device(device).type == "cpu"}
    options["check_finite"] = check_finite
    options |= scale.install(vita, kernels=kernels, quantize=quantize, split=split, pack=pack)
    checkpoint.load_weights(vita, table, files, **options)
    vita.folder = folder
    if speech_dir := find_speech(folder, speech_dir):
        vita.speech_folder = speech_dir
        vita.speech = Speech.from_pretrained(speech_dir, device=device, check_finite=check_finite)
        vita.config = replace(vita.config, speech=vita.speech.decoder.config)
    return vita.eval()


def as_dtype(given):
    """A torch dtype from itself or its name; None for None and "auto"."""
    if given is None or isinstance(given, str) and given == "auto":
        return None
    dtype = DTYPES.get(given.removeprefix("torch.").lower()) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise ValueError(f"dtype must be a torch dtype or one of {', '.join(DTYPES)}, got {shown(given)}")
    return dtype


def as_folder(given):
    """A path from a str or a path. Raises: ValueError."""
    if not isinstance(given, (str, os.PathLike)) or given == "":
        raise ValueError(f"a checkpoint folder must be a path, or None for the demo, got {shown(given)}")
    return Path(given)


def with_stored_vocabulary(config, files):
    """The config with the vocabulary size of the stored embeddings and head, for a VITA folder.

    Upstream's loader resizes both to the tokenizer, so the config of a saved folder may have another size.
    """
    if config.template != "vita":
        return config
    names = [name for name in ("model.embed_tokens.weight", "lm_head.weight") if name in files]
    rows = {checkpoint.read_shapes(Path(files[name]))[name][0] for name in names}
    return replace(config, decoder=replace(config.decoder, vocab_size=rows.pop())) if len(rows) == 1 else config


def unread_prefixes(config, table=PREFIXES):
    """Checkpoint prefixes of the parts that cannot be built, because their configs are missing, and of a copied head."""
    head = [table["decoder.lm_head."]] if config.decoder.tie_word_embeddings else []  # equal to the embeddings (`stored_config`)
    return [prefix for part in config.missing for prefix in PART_PREFIXES[part]] + head


def find_speech(folder, given=None):
    """The folder of the speech weights, None if there are none."""
    if given is not None:
        return given
    places = [place / name for name in SPEECH_FOLDERS for place in (Path(folder), Path(folder).resolve().parent)]
    return next((place for place in places if (place / "decoder" / "model.json").is_file()), None)
