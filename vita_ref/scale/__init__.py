"""Faster or smaller than plain PyTorch: products by processor, int8 weights, a decoder over several processes.

Loading calls `install` on the model that it has built on the meta device. Results differ from those of the plain model
by rounding, and with int8 by up to half a step of each weight.

Test: ``pytest tests/scale``
"""

from ..files.checkpoint import set_param
from ..files.messages import shown
from . import int8, products

KERNELS = ("auto", "plain", "fast")


def install(vita, *, kernels="auto", quantize=None, pack=False, split=False):
    """Replaces modules of a `Vita` on the meta device by those of this package, before its weights are loaded.

    Args:
        kernels: "plain" leaves torch's products. "fast" uses the products of `products.TABLE` for every matrix of the
            decoder, the vision tower and the audio encoder. "auto" uses them for generation only: the decoder uses
            them in ``vita.generation_products()``, so ``vita(...)``, ``encode_images`` and ``encode_audios`` are plain.
            With any of the three the same call gives the same bits, on the same processor, torch, dtype and number of
            threads. With "auto", generation and ``vita(...)`` may differ by rounding.
        quantize: None or "int8", for the matrices of the decoder. Their product does not depend on ``kernels``.
        pack: stores the decoder's matrices in oneDNN's order. Their product does not depend on ``kernels``.
        split: keeps this process's part of the decoder only (see `parallel`).

    Returns: the keyword arguments that `load_weights` needs for it: ``assign``, ``part`` and ``mmap``.
    Raises: ValueError for options that are unknown or exclude each other.
    """
    check(kernels, quantize, pack)
    options = {"assign": set_param}
    if quantize:
        int8.int8_linears(vita.decoder)
        options["assign"] = int8.assign
    if pack:
        products.packed_linears(vita.decoder)
        options["assign"] = products.pack_weight
    if kernels == "fast":
        products.use_fast_products(vita)
    elif kernels == "auto":
        products.use_fast_products(vita.decoder, always=False)
        vita.generation_products = products.fast_products
    if split:
        from . import parallel

        parallel.split(vita.decoder)
        options["part"] = parallel.part
    if quantize or pack or split:  # these convert or copy tensors, so mapping the file has no advantage
        options["mmap"] = False
    return options


def check(kernels, quantize, pack):
    """Raises: ValueError for options that are unknown or exclude each other."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, got {shown(kernels)}")
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {shown(quantize)}")
    if quantize and pack:
        raise ValueError("int8 weights cannot be packed: give pack or quantize")
