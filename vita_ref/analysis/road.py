"""The road of one request: its stages with real shapes, bytes, operations that are counted and milliseconds that were measured.

Test: ``pytest tests/analysis/test_look.py``
"""

from . import budget


def road(vita, prepared, run, pictures, sounds, new, prepare_seconds=None):
    """A list of stages: dicts with name, shape, bytes, operations and ms; what is not known is None.

    The times contain the hooks. ``new`` is the number of passes of the decoder, the one over the prompt included.
    """
    *chunks, head = run.prompt_stages()
    length = sum(stage.shape[1] for stage in chunks)
    flops = budget.count_flops(vita.config, [prepared], length, new)
    rows = []

    def add(name, shape, nbytes=None, operations=None, seconds=None):
        ms = None if seconds is None else 1000 * seconds
        rows.append({"name": name, "shape": list(shape), "bytes": nbytes, "operations": operations, "ms": ms})

    for picture in pictures:
        size = "" if picture.size is None else f" ({picture.size[0]} x {picture.size[1]} pixels)"
        add(f"{picture.name}{size} to tiles", picture.tiles.shape, picture.tiles.nbytes)
    for sound in sounds:
        length_s = "" if sound.seconds is None else f" ({sound.seconds:.2f} s at {sound.rate:,} Hz)"
        add(f"{sound.name}{length_s} to a filter bank", sound.bank.shape, sound.bank.nbytes)
    if prepare_seconds is not None:
        add("files read and prompt encoded", prepared.ids.shape, prepared.ids.nbytes, None, prepare_seconds)
    for name, stage in (("vision tower", "vision"), ("projector", "projector"), ("audio encoder", "audio")):
        calls = [each for each in run.stages if each.name == name]
        if calls:
            shape = calls[0].shape if len(calls) == 1 else (sum(c.shape[0] for c in calls), *calls[0].shape[1:])
            add(name, shape, sum(c.nbytes for c in calls), flops[stage], sum(c.seconds for c in calls))
    later = [stage for stage in run.stages if stage.name in ("decoder", "head")][len(chunks) + 1 :]
    shape, nbytes = (1, length, chunks[0].shape[2]), sum(stage.nbytes for stage in chunks)
    add("splice: rows of text, pictures and sounds", shape, nbytes)
    seconds = sum(stage.seconds for stage in (*chunks, head))
    add("decoder over the prompt, and the head", shape, nbytes, flops["prefill"], seconds)
    cache = budget.cache_elements(vita.config.decoder, 1, length) * vita.decoder.norm.weight.element_size()
    d = vita.config.decoder
    add("KV cache of the prompt", (d.num_hidden_layers, 2, d.num_key_value_heads, length, d.head_dim), cache)
    steps = [stage for stage in later if stage.name == "decoder"]
    if steps:
        seconds = sum(stage.seconds for stage in later)
        add(f"{len(steps)} more tokens, one pass each", steps[0].shape, steps[0].nbytes, flops["decode"], seconds)
    return rows

