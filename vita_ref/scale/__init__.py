"""Faster or smaller than plain PyTorch: products, int8 weights, several processes. Nothing here changes a result beyond rounding."""


def install(vita, *, kernels, quantize, split, pack):
    from .int8 import assign, int8_linears

    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {quantize!r}")
    if quantize:
        int8_linears(vita.decoder)
        return {"assign": assign, "mmap": False}
    return {}
