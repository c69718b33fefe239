"""Faster or smaller than plain PyTorch: products by processor, int8 and int4 weights, a decoder over several processes.

Loading calls `install` on the model that it has built on the meta device. Results differ from those of the plain model
by rounding, and with int8 and int4 by what `int8` and `int4` say of each weight.

Test: ``pytest tests/scale``
"""

from torch import nn

from ..files.checkpoint import set_param
from ..files.messages import shown
from . import convolutions, int4, int8, products

KERNELS = ("auto", "plain", "fast")
METHODS = {"int8": (int8.Int8Linear, int8.assign), "int4": (int4.Int4Linear, int4.assign)}


def install(vita, *, kernels="auto", quantize=None, pack=False, split=False):
    """Replaces modules of a `Vita` on the meta device by those of this package, before its weights are loaded.

    Args:
        kernels: "plain" leaves torch's products. "fast" uses the products of `products.TABLE` for every matrix and
            convolution of the decoder, the vision tower and the audio encoder. "auto" uses them for generation only,
            inside ``vita.generation_products()``, so ``vita(...)``, ``encode_images`` and ``encode_audios`` are plain.
            With any of the three the same call gives the same bits, on the same processor, torch, dtype and number of
            threads. With "auto", generation and ``vita(...)`` may differ by rounding.
        quantize: None, "int8" or "int4", for the matrices of the decoder. Their product does not depend on ``kernels``.
            A folder that is quantised already (``vita.config.quantization``) needs no flag.
        pack: stores the decoder's matrices in oneDNN's order. Their product does not depend on ``kernels``.
        split: keeps this process's part of the decoder only (see `parallel`).

    Returns: the keyword arguments that `load_weights` needs for it: ``assign``, ``part`` and ``mmap``.
    Raises: ValueError for options that are unknown or exclude each other.
    """
    check(kernels, quantize, pack)
    stored = vita.config.quantization
    if stored:
        check_stored(stored.method, quantize, pack, split)
    options = {"assign": set_param}
    if stored or quantize:
        options["assign"] = quantized_linears(vita.decoder, quantize, stored)
    if pack:
        products.packed_linears(vita.decoder)
        options["assign"] = products.pack_weight
    if kernels != "plain":
        use_fast(vita, always=kernels == "fast")
    if kernels == "auto":
        vita.generation_products = products.fast_products
    if split:
        from . import parallel

        parallel.split(vita.decoder)
        options["part"] = parallel.part
    if quantize and not stored or pack or split:  # these convert or copy tensors: mapping the file has no advantage
        options["mmap"] = False
    return options


def use_fast(module, always):
    """Replaces linear maps, tied heads and convolutions by those of the table of processors."""
    products.use_fast_products(module, always)
    convolutions.use_fast_convolutions(module, always)


def quantized_linears(decoder, method=None, stored=None):
    """Replaces the linear maps of a decoder's layers, and its head unless it is tied, by quantised ones.

    ``stored`` is the `QuantizationConfig` of a folder whose weights are quantised already, or None.
    Returns: the ``assign`` of `load_weights`, which quantises each weight as it is read.
    """
    kind, assign = METHODS[stored.method if stored else method]
    options = {"stored": True} if stored else {}
    if stored and stored.group_size:
        options["group"] = stored.group_size
    for owner in [*decoder.modules()]:
        for name, child in [*owner.named_children()]:
            if isinstance(child, nn.Linear):
                setattr(owner, name, kind(child, **options))
    return assign


def check(kernels, quantize, pack):
    """Raises: ValueError for options that are unknown or exclude each other."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, got {shown(kernels)}")
    if quantize is not None and (not isinstance(quantize, str) or quantize not in METHODS):
        raise ValueError(f"quantize must be None, 'int8' or 'int4', got {shown(quantize)}")
    if quantize and pack:
        raise ValueError(f"{quantize} weights cannot be packed: give pack or quantize")


def check_stored(method, quantize, pack, split):
    """Raises: ValueError for options that a folder of quantised weights excludes."""
    if quantize not in (None, method):
        raise ValueError(f"this folder's weights are {method} already: leave quantize out, or take the original")
    if pack or split:
        what = "packed" if pack else "split over processes"
        raise ValueError(f"this folder's weights are {method} and cannot be {what}: take the original")
