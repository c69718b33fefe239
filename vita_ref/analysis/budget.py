"""What requests will need, counted before any weight is read: ``python -m vita_ref.generate --dry-run``.

    config, prepared requests -> positions, parameters, bytes, operations -> a table, or JSON

Positions are those of the splice itself, run over features of width 0; parameters and bytes are those of the
modules themselves, built on the meta device. Operations are formulas, in which a multiply and an add are two:
products of matrices, convolutions, and attention of every query to every key, those behind the mask too.
Norms, activations, softmax and rotations are left out. The peak is an estimate, of loading or of the widest layer.

Test: ``pytest tests/test_budget.py``
"""

import functools
import operator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..audio import (
    BLOCK,
    encoder_position_count,
    visible_spans,
)
from ..files import checkpoint
from ..files.folders import read_config
from ..files.speech import read_codec_config, read_speech_config
from ..files.tokenizer import load_tokenizer
from ..model import PART_PREFIXES, TABLE, Vita, resized, speech_folder
from ..request import features, patches, positions
from ..scale import int8 as quant
from ..speech import Speech

# ---- weights


def outline(folder, *, vision_dir=None, audio_dir=None, speech_dir=None):
    """`Vita.from_pretrained` without its numbers: (Vita on the meta device, what lies on disk).

    Weights that cannot be read are told in the second; those that can must fit the config, by their headers.
    """
    config, files = read_config(folder, vision_dir=vision_dir, audio_dir=audio_dir), {}
    try:
        files = checkpoint.find_tensors(folder)
        disk = {"bytes": sum(f.stat().st_size for f in set(files.values())), "dtypes": dtypes(files), "absent": None}
    except ValueError as error:
        disk = {"bytes": 0, "dtypes": [], "absent": str(error)}
    if config.template == "vita":
        config = replace(config, decoder=resized(config.decoder, files))
    tokenizer = load_tokenizer(folder)
    with torch.device("meta"):
        vita = Vita(config, tokenizer)
        if files:
            checkpoint.check_fits(vita, TABLE, files, [p for part in config.missing for p in PART_PREFIXES[part]])
        if speech_dir := speech_folder(Path(folder), speech_dir):
            decoder, codec = (Path(speech_dir) / part / "model.json" for part in ("decoder", "codec"))
            vita.speech = Speech(read_speech_config(decoder), read_codec_config(codec))
    return vita, disk


def dtypes(files):
    """The dtypes of the tensors in safetensors files, as their headers name them: ["BF16"]."""
    found = set()
    for file in set(files.values()):
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            found |= {opened.get_slice(name).get_dtype() for name in names}
    return sorted(found)


def parts(vita):
    """The modules whose weights are told apart."""
    d, tied = vita.decoder, vita.config.decoder.tie_word_embeddings
    found = {"vision": vita.vision, "projector": vita.projector, "audio": vita.audio, "embeddings": d.embed_tokens}
    found |= {"layers": nn.ModuleList([d.layers, d.norm]), "head": None if tied else d.lm_head, "speech": vita.speech}
    return {name: module for name, module in found.items() if module is not None}


def weights(config, dtype, quantize=None, speech=None):
    """Parameters, bytes and dtype of every part, as `Vita.from_pretrained` holds it in memory."""
    with torch.device("meta"):
        vita = Vita(config)
        vita.speech = speech
        found = {name: {"parameters": sum(p.numel() for p in m.parameters())} for name, m in parts(vita).items()}
        if quantize:
            quant.int8_linears(vita.decoder)
    for name, module in parts(vita).items():
        kind = torch.float32 if name == "speech" else dtype
        label = quantize if quantize and name in ("layers", "head") else str(kind).removeprefix("torch.")
        found[name] |= {"bytes": held_bytes(module, kind), "dtype": label}
    return found | {"total": {k: sum(part[k] for part in found.values()) for k in ("parameters", "bytes")}}


def held_bytes(module, dtype):
    """Bytes of a module whose checkpoint is read as ``dtype``; what no checkpoint holds (scales) is as it is built."""
    stored, held = module.state_dict(), dict(module.named_parameters()) | dict(module.named_buffers())
    kinds = {n: dtype if n in stored and t.is_floating_point() else t.dtype for n, t in held.items()}
    return sum(t.numel() * kinds[n].itemsize for n, t in held.items())


def share(config, ranks):
    """The config of one of several ranks (see `parallel`): its part of heads, MLP and tables, rounded up, all else whole.

    Raises: ValueError where the key/value heads do not come out even.
    """
    d = config.decoder
    if d.num_key_value_heads % ranks:
        raise ValueError(f"{ranks} ranks cannot share {d.num_key_value_heads} key/value heads: give a divisor of it")
    split = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    return replace(config, decoder=replace(d, **{name: -(-getattr(d, name) // ranks) for name in split}))


# ---- operations


def vision_flops(vision, patches):
    """The eye's for one tile: a convolution, then layers in which patches and class token see each other."""
    rows, c = patches + 1, vision.hidden_size
    layer = 2 * rows * (4 * c * c + 2 * c * vision.intermediate_size) + 4 * rows * rows * c
    return 2 * patches * vision.num_channels * vision.patch_size**2 * c + vision.num_hidden_layers * layer


def audio_flops(audio, width, sounds, frames):
    """The ear's for sounds that are padded to so many frames, and come out ``width`` wide."""
    rows, bands = encoder_position_count(frames), encoder_position_count(audio.num_mel_bins)
    e, u, blocks = audio.hidden_size, audio.subsampling_size, -(-rows // BLOCK)
    first = (2 * rows + blocks) * ((audio.num_mel_bins - 1) // 2) * 9 * u  # blocks share a row of the first convolution
    below = first + rows * bands * (9 + 1) * u * u + rows * u * e
    spans = visible_spans(rows, audio.chunk_size, audio.left_chunks)
    seen = sum((q.stop - q.start) * (k.stop - k.start) for q, k in spans)
    layer = rows * ((4 + 2 * audio.concat_after) * e * e + 2 * e * audio.intermediate_size) + 2 * seen * e
    relative = audio.position_encoding == "rel-enc"  # its positions are projected once for all sounds
    layers = audio.num_hidden_layers * (sounds * (layer + relative * rows * e) + relative * rows * (e * e + e))
    adapter = (rows + 1) // 2 * 2 * e * (audio.adapter_kernel_size * e + width)
    return 2 * (sounds * (below + adapter) + layers)


def projector_flops(vision, width, rows):
    """Those of two matrices, for so many rows that come out ``width`` wide."""
    return 2 * rows * (vision.feature_size + width) * width


def layer_elements(decoder):
    """Elements of the matrices in all layers, each of which every position is multiplied by; the head is not in it."""
    d, heads, groups = decoder.hidden_size, decoder.num_attention_heads, decoder.num_key_value_heads
    return decoder.num_hidden_layers * (2 * d * (heads + groups) * decoder.head_dim + 3 * d * decoder.intermediate_size)


def cache_elements(decoder, rows, length):
    """Elements of the keys and values of so many rows of positions."""
    return 2 * decoder.num_hidden_layers * rows * decoder.num_key_value_heads * length * decoder.head_dim


def decoder_flops(decoder, rows, seen):
    """The layers' for ``rows`` positions of which each sees ``seen``: 2 a weight, 4 a key and column of a head."""
    looking = decoder.num_hidden_layers * seen * decoder.num_attention_heads * decoder.head_dim
    return rows * (2 * layer_elements(decoder) + 4 * looking)


def flops(config, group, longest, new):
    """Operations of each stage for requests that run together, padded to ``longest``, until ``new`` tokens are out."""
    d, v, a = config.decoder, config.vision, config.audio
    pictures, sounds = [x for p in group for x in p.images], [x for p in group for x in p.sounds]
    rows, head = sum(features(v, x) for x in pictures), 2 * d.hidden_size * d.vocab_size
    steps = [decoder_flops(d, 1, longest + i) + head for i in range(1, new)]  # the first token comes of the prefill
    return {
        "vision": sum(len(x) * vision_flops(v, patches(v, x)) for x in pictures),
        "projector": projector_flops(v, d.hidden_size, rows) if rows else 0,
        "audio": audio_flops(a, d.hidden_size, len(sounds), max(map(len, sounds))) if sounds else 0,
        "prefill": len(group) * (decoder_flops(d, longest, longest) + head),
        "decode": len(group) * sum(steps),
    }


# ---- all of it


def passing_bytes(config, group, lengths, size, quantize):
    """About the most that lives for a moment beside weights and cache, at ``size`` bytes a number.

    For each row of a layer of the eye, the ear or the decoder that is three times the MLP's width and six times its
    own; or, where rows are padded, their mask. An int8 matrix becomes numbers when it is used.
    """
    d, v, a = config.decoder, config.vision, config.audio
    tiles = sum(len(x) * (patches(v, x) + 1) for asked in group for x in asked.images)
    frames = [len(x) for asked in group for x in asked.sounds]
    heard = len(frames) * encoder_position_count(max(frames)) if frames else 0
    rows = [(d, len(group) * max(lengths)), (v, tiles), (a, heard)]
    layer = max(n * (3 * part.intermediate_size + 6 * part.hidden_size) for part, n in rows if n)
    matrix = d.hidden_size * max(d.intermediate_size, d.vocab_size) if quantize else 0
    mask = len(group) * max(lengths) ** 2 if len(set(lengths)) > 1 else 0
    return (max(layer, mask) + matrix) * size + mask  # the mask is kept in bytes too


def needs(config, ready, *, dtype, quantize=None, pack=False, max_new_tokens=256, group=8, speech=None):
    """What prepared requests need when ``group`` of them run at a time, as a dict that JSON can hold.

    ``speech`` is the voice on the meta device, if it is loaded too. Operations are those of all requests;
    ``token`` is one more token behind the longest of them, ``vision_tile`` a tile of the eye's own size.
    """
    d, v, new, size = config.decoder, config.vision, max_new_tokens, dtype.itemsize
    rows = [positions(config, asked) for asked in ready]
    longest, work, cached, most = max(row["total"] for row in rows), [], [], []
    for i in range(0, len(ready), group):
        together, lengths = ready[i : i + group], [row["total"] for row in rows[i : i + group]]
        work.append(flops(config, together, max(lengths), new))
        cached.append(cache_elements(d, len(together), max(lengths) + new) * size)
        most.append(cached[-1] + passing_bytes(config, together, lengths, size, quantize))
    stages = {stage: sum(w[stage] for w in work) for stage in work[0]} | {"total": sum(sum(w.values()) for w in work)}
    single = {
        "vision_tile": vision_flops(v, v.grid**2) if v else 0,
        "token": decoder_flops(d, 1, longest + new) + 2 * d.hidden_size * d.vocab_size,
    }
    sums = {k: sum(row[k] for row in rows) for k in rows[0]}
    held = weights(config, dtype, quantize, speech)
    media = sum(x.nbytes for asked in ready for x in (*asked.images, *asked.sounds))
    largest = d.hidden_size * max(d.intermediate_size, d.vocab_size)
    loading = largest * size if quantize or pack else 0  # beside its whole numbers, or itself rearranged
    return {
        "positions": sums | {"longest": longest, "with_new": longest + new},
        "requests": rows,
        "weights": held,
        "kv_bytes": max(cached),
        "flops": stages | single,
        "peak_bytes": held["total"]["bytes"] + max(loading, media + max(most)),
    }


def short(number, unit=""):
    """A number in four figures: 1.09 GB."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            break
        number /= 1000
    return f"{number:.4g} {prefix}{unit}"


def table(found):
    """What `needs` found, with ``disk``, ``missing``, ``ranks`` and ``each_rank`` beside it, for people to read."""
    p, f, disk, many = found["positions"], found["flops"], found["disk"], found["ranks"] > 1
    columns = [found, found["each_rank"]] if many else [found]

    def line(label, *path, unit="B", note=""):
        values = [functools.reduce(operator.getitem, path, column) for column in columns]
        return (f"{label:13}" + "".join(f"{short(value, unit):>13}" for value in values) + f"   {note}").rstrip()

    lines = [f"positions: {p['text']} text, {p['image']} image, {p['audio']} audio, {p['total']} in all"]
    lines += [f"  {len(found['requests'])} requests, the longest of {p['longest']}"] * (len(found["requests"]) > 1)
    lines += [f"  {p['cut']} more do not fit into the longest prompt and are cut off"] * (p["cut"] > 0)
    lines += ["weights" + f"{'each of ' + str(found['ranks']) + ' ranks':>32}" * many]
    for name, part in found["weights"].items():
        note = ", ".join([f"{part['parameters']:,} parameters", *([part["dtype"]] if "dtype" in part else [])])
        lines.append(line(f"  {name}", "weights", name, "bytes", note=note))
    lines += [f"  without {part}: {why}" for part, why in found["missing"].items()]
    there = f"{short(disk['bytes'], 'B')} of {', '.join(disk['dtypes'])}"
    lines += [f"  on disk: {'nothing to be read, ' + disk['absent'] if disk['absent'] else there}"]
    lines += [line("KV cache", "kv_bytes", note=f"{p['with_new']} positions with the new tokens")]
    lines += ["operations (a multiply and an add are two)"]
    notes = {"vision": f"{short(f['vision_tile'])} a tile", "decode": f"{short(f['token'])} a token"}
    for stage in ("vision", "projector", "audio", "prefill", "decode", "total"):
        lines.append(line(f"  {stage}", "flops", stage, unit="", note=notes.get(stage, "")))
    return "\n".join([*lines, line("peak", "peak_bytes", note="about; Python and libraries come on top")])
