"""A loaded `Vita` -> a folder that `from_pretrained` reads: ``vita.save_pretrained(folder)``.

    modules -> tensors by the checkpoint's names -> files/saving.py -> safetensors, config.json, tokenizer, speech

Test: ``pytest tests/test_saving.py``
"""

from dataclasses import replace

from .config import QuantizationConfig
from .files.checkpoint import module_names
from .files.messages import one_line_errors
from .files.names import PREFIXES
from .files.saving import write_folder
from .loading import find_speech


@one_line_errors
def save_vita(vita, folder):
    """Writes a model into a new folder. Quantised matrices stay so; the files of tokenizer and speech are copied.

    Raises: ValueError if the folder is not empty, if the weights are packed or split over processes, or if there is a
    tokenizer but no folder that the model was read from.
    """
    if vita.tokenizer is not None and vita.folder is None:
        raise ValueError("the tokenizer's files are copied when a model is saved, but it was not read from a folder")
    if any(t.is_mkldnn or t.is_meta for t in vita.state_dict().values()):
        raise ValueError("weights that are packed, or on the device meta, cannot be saved: load the model without pack")
    if vita.decoder.config != vita.config.decoder:
        raise ValueError("this process has a part of the model: load it without split to save it")
    speech = vita.speech and vita.folder and (vita.speech_folder or find_speech(vita.folder))
    write_folder(folder, saved_config(vita), saved_tensors(vita), vita.folder, speech)


def quantized(vita):
    """The quantised modules of a model, by name."""
    return {name: module for name, module in vita.named_modules() if hasattr(module, "stored_tensors")}


def saved_config(vita):
    """The `VitaConfig` of a model's values as they are: their dtype, and how they are quantised."""
    config = replace(vita.config, dtype=str(vita.decoder.norm.weight.dtype).removeprefix("torch."))
    first = next(iter(quantized(vita).values()), None)
    if first is None or config.quantization:
        return config
    return replace(config, quantization=QuantizationConfig(first.method, getattr(first, "group", None)))


def saved_tensors(vita):
    """Yields the checkpoint's name of each tensor, and the tensor."""
    small, names = quantized(vita), {own: name for name, own in module_names(vita, PREFIXES).items()}
    for own, tensor in vita.state_dict().items():
        path, _, leaf = own.rpartition(".")
        if path not in small or leaf == "bias":
            yield names[own], tensor
    for path, module in small.items():
        prefix = names[f"{path}.weight"].removesuffix("weight")
        for leaf, tensor in module.stored_tensors().items():
            yield prefix + leaf, tensor
