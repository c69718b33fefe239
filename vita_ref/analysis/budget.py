"""Memory and operations of requests, counted without reading weights: ``python -m vita_ref.generate --dry-run``.

    config, prepared requests -> positions, parameters, bytes, operations -> a table, or JSON

Positions are counted as the splice counts them. Parameters and bytes are those of the modules themselves, built on the
meta device. Operations are formulas in which a multiply and an add are two operations: matrix products, convolutions,
and attention of every query to every key, masked keys included. Norms, activations, softmax and rotations are not
counted. The peak is an estimate: of loading, or of the widest layer, whichever is larger.

Test: ``pytest tests/analysis/test_budget.py``
"""

import functools
import operator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from ..audio import BLOCK, encoder_position_count, visible_spans
from ..config import QuantizationConfig
from ..files import checkpoint
from ..files.folders import read_config
from ..files.names import prefixes
from ..files.speech import read_codec_config, read_speech_config
from ..files.tokenizer import load_tokenizer
from ..loading import find_speech, unread_prefixes, with_stored_vocabulary
from ..model import PROMPT_CHUNK, Vita
from ..request import count_positions, image_positions, num_patches
from ..scale import blocks, int4, quantized_linears
from ..speech import Speech

STAGES = ("vision", "projector", "audio", "prefill", "decode", "total")

# ---- weights


def meta_model(folder, *, vision_dir=None, audio_dir=None, speech_dir=None):
    """`Vita.from_pretrained` without reading weights: (the model on the meta device, a dict that describes the files).

    Weight files may be absent; the dict then gives the reason. The headers of existing files must fit the config.
    Raises: ValueError for a folder whose config cannot be read, or whose tensors do not fit it.
    """
    config, files = read_config(folder, vision_dir=vision_dir, audio_dir=audio_dir), {}
    try:
        files = checkpoint.find_tensors(folder)
        size = sum(file.stat().st_size for file in set(files.values()))
        disk = {"bytes": size, "dtypes": file_dtypes(files), "absent": None}
    except ValueError as error:
        disk = {"bytes": 0, "dtypes": [], "absent": str(error)}
    table = prefixes(config, files)
    config = with_stored_vocabulary(checkpoint.stored_config(config, files, table), files)
    tokenizer = load_tokenizer(folder)
    with torch.device("meta"):
        vita = Vita(config, tokenizer)
        if files:
            if config.quantization:
                quantized_linears(vita.decoder, stored=config.quantization)
            checkpoint.check_fits(vita, table, files, unread_prefixes(config, table))
        if speech_dir := find_speech(folder, speech_dir):
            decoder, codec = (Path(speech_dir) / part / "model.json" for part in ("decoder", "codec"))
            vita.speech = Speech(read_speech_config(decoder), read_codec_config(codec))
    return vita, disk


def file_dtypes(files):
    """The dtypes of the tensors in safetensors files, as their headers name them: ["BF16"]."""
    dtypes = set()
    for path in set(files.values()):
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            dtypes |= {file.get_slice(name).get_dtype() for name in names}
    return sorted(dtypes)


def weight_parts(vita):
    """The modules whose weights are counted separately, by name."""
    d, tied = vita.decoder, vita.config.decoder.tie_word_embeddings
    parts = {"vision": vita.vision, "projector": vita.projector, "audio": vita.audio, "embeddings": d.embed_tokens}
    parts |= {"layers": nn.ModuleList([d.layers, d.norm]), "head": None if tied else d.lm_head, "speech": vita.speech}
    return {name: module for name, module in parts.items() if module is not None}


def count_weights(config, dtype, quantize=None, speech=None):
    """Parameters, bytes and dtype of each part, as `Vita.from_pretrained` stores them in memory, and their sums."""
    stored = config.quantization
    if stored is None and quantize:
        stored = QuantizationConfig(quantize, int4.GROUP if quantize == "int4" else None)
    with torch.device("meta"):
        vita = Vita(config)
        vita.speech = speech
        parts = weight_parts(vita)
        counts = {name: {"parameters": sum(p.numel() for p in part.parameters())} for name, part in parts.items()}
        if stored:
            quantized_linears(vita.decoder, stored=stored)
    for name, module in weight_parts(vita).items():
        part_dtype = torch.float32 if name == "speech" else dtype
        label = stored.method if stored and name in ("layers", "head") else str(part_dtype).removeprefix("torch.")
        counts[name] |= {"bytes": module_bytes(module, part_dtype), "dtype": label}
    return counts | {"total": {key: sum(part[key] for part in counts.values()) for key in ("parameters", "bytes")}}


def module_bytes(module, dtype):
    """Bytes of a module whose checkpoint is read as ``dtype``. Tensors that no checkpoint stores keep their dtype."""
    stored, tensors = module.state_dict(), dict(module.named_parameters()) | dict(module.named_buffers())
    kept = {n for n, t in tensors.items() if n not in stored or not t.is_floating_point() or n.endswith("weight_scale")}
    dtypes = {n: t.dtype if n in kept else dtype for n, t in tensors.items()}
    return sum(t.numel() * dtypes[n].itemsize for n, t in tensors.items())


def rank_config(config, ranks):
    """The config of one of several processes (see scale/parallel.py): its heads, MLP and vocabulary, rounded up.

    Raises: ValueError if the number of key/value heads is not a multiple of ``ranks``.
    """
    d = config.decoder
    if d.num_key_value_heads % ranks:
        raise ValueError(f"{ranks} ranks cannot share {d.num_key_value_heads} key/value heads: give a divisor of it")
    split = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    return replace(config, decoder=replace(d, **{name: -(-getattr(d, name) // ranks) for name in split}))


# ---- operations


def vision_flops(vision, patches):
    """Operations of the vision tower for one tile: a convolution, then layers over the patches and the class token."""
    positions, width = patches + 1, vision.hidden_size
    layer = 2 * positions * (4 * width * width + 2 * width * vision.intermediate_size) + 4 * positions**2 * width
    return 2 * patches * vision.num_channels * vision.patch_size**2 * width + vision.num_hidden_layers * layer


def audio_flops(audio, width, sounds, frames):
    """Operations of the audio encoder for sounds padded to ``frames`` frames; ``width`` is that of the decoder."""
    positions, bands = encoder_position_count(frames), encoder_position_count(audio.num_mel_bins)
    e, u, blocks = audio.hidden_size, audio.subsampling_size, -(-positions // BLOCK)
    first = (2 * positions + blocks) * ((audio.num_mel_bins - 1) // 2) * 9 * u  # blocks overlap by one row here
    subsampling = first + positions * bands * (9 + 1) * u * u + positions * u * e
    spans = visible_spans(positions, audio.chunk_size, audio.left_chunks)
    visible = sum((q.stop - q.start) * (k.stop - k.start) for q, k in spans)
    layer = positions * ((4 + 2 * audio.concat_after) * e * e + 2 * e * audio.intermediate_size) + 2 * visible * e
    relative = audio.position_encoding == "rel-enc"  # one projection of the positions serves all sounds
    layers = sounds * (layer + relative * positions * e) + relative * positions * (e * e + e)
    adapter = (positions + 1) // 2 * 2 * e * (audio.adapter_kernel_size * e + width)
    return 2 * (sounds * (subsampling + adapter) + audio.num_hidden_layers * layers)


def projector_flops(vision, width, rows):
    """Operations of the projector's two matrices for ``rows`` positions; ``width`` is that of the decoder."""
    return 2 * rows * (vision.feature_size + width) * width


def layer_elements(decoder):
    """Elements of the matrices in all layers. The head is not included."""
    d, heads, groups = decoder.hidden_size, decoder.num_attention_heads, decoder.num_key_value_heads
    return decoder.num_hidden_layers * (2 * d * (heads + groups) * decoder.head_dim + 3 * d * decoder.intermediate_size)


def cache_elements(decoder, rows, length):
    """Elements of the KV cache of ``rows`` sequences of ``length`` positions."""
    return 2 * decoder.num_hidden_layers * rows * decoder.num_key_value_heads * length * decoder.head_dim


def decoder_flops(decoder, queries, keys):
    """Operations of the layers: 2 for each query and weight, 4 for each query, key and column of a head."""
    attention = decoder.num_hidden_layers * keys * decoder.num_attention_heads * decoder.head_dim
    return queries * (2 * layer_elements(decoder) + 4 * attention)


def count_flops(config, group, longest, new_tokens):
    """Operations of each stage, for requests that run together, padded to ``longest``, with ``new_tokens`` each."""
    d, v, a = config.decoder, config.vision, config.audio
    images, sounds = [x for p in group for x in p.images], [x for p in group for x in p.sounds]
    rows, head = sum(image_positions(v, tiles) for tiles in images), 2 * d.hidden_size * d.vocab_size
    steps = [decoder_flops(d, 1, longest + i) + head for i in range(1, new_tokens)]  # prefill gives the first token
    return {
        "vision": sum(len(tiles) * vision_flops(v, num_patches(v, tiles)) for tiles in images),
        "projector": projector_flops(v, d.hidden_size, rows) if rows else 0,
        "audio": audio_flops(a, d.hidden_size, len(sounds), max(map(len, sounds))) if sounds else 0,
        "prefill": len(group) * (decoder_flops(d, longest, longest) + head),
        "decode": len(group) * sum(steps),
    }


# ---- the whole estimate


def transient_bytes(config, group, lengths, itemsize, quantize):
    """An estimate of the largest memory in addition to weights and cache, for numbers of ``itemsize`` bytes.

    A row of a layer of the vision tower, the audio encoder or the decoder takes three times the MLP width and six times
    the model width; the decoder reads `PROMPT_CHUNK` positions of each prompt at a time. With padding, and behind the
    first pass, attention has a mask, and keys and values for all heads. An int8 matrix is expanded when it is used.
    """
    d, v, a, longest = config.decoder, config.vision, config.audio, max(lengths)
    passes = [(min(PROMPT_CHUNK, longest - start), min(start + PROMPT_CHUNK, longest)) for start in range(0, longest, PROMPT_CHUNK)]
    vision_rows = sum(len(tiles) * (num_patches(v, tiles) + 1) for p in group for tiles in p.images)
    frames = [len(bank) for p in group for bank in p.sounds]
    audio_rows = len(frames) * encoder_position_count(max(frames)) if frames else 0
    rows = [(d, len(group) * min(longest, PROMPT_CHUNK)), (v, vision_rows), (a, audio_rows)]
    waiting = len(group) * max(0, longest - PROMPT_CHUNK) * d.hidden_size  # embeddings that are read later
    layer = waiting + max(n * (3 * part.intermediate_size + 6 * part.hidden_size) for part, n in rows if n)
    block = 4 * blocks.BLOCK if quantize or config.quantization else 0
    masked = passes if len(set(lengths)) > 1 else passes[1:]
    mask = len(group) * max((new * end for new, end in masked), default=0)
    heads = 2 * longest * d.num_attention_heads * d.head_dim
    attention = len(group) * (heads + 6 * d.hidden_size * passes[0][0]) + mask if mask else 0
    return max(layer, attention) * itemsize + block + mask  # the mask also exists as booleans


def estimate(config, prepared, *, dtype, quantize=None, pack=False, max_new_tokens=256, group=8, speech=None):
    """What prepared requests need if ``group`` of them run at a time, as a dict for JSON.

    ``speech`` is a `Speech` on the meta device, or None. Operations are those of all requests. ``token``
    is one more token after the longest of them, ``vision_tile`` a tile of the vision tower's own size.
    """
    d, v, itemsize = config.decoder, config.vision, dtype.itemsize
    requests = [count_positions(config, each) for each in prepared]
    longest, flops, cache, peaks = max(each["total"] for each in requests), [], [], []
    for i in range(0, len(prepared), group):
        together, lengths = prepared[i : i + group], [each["total"] for each in requests[i : i + group]]
        flops.append(count_flops(config, together, max(lengths), max_new_tokens))
        cache.append(cache_elements(d, len(together), max(lengths) + max_new_tokens) * itemsize)
        peaks.append(cache[-1] + transient_bytes(config, together, lengths, itemsize, quantize))
    stages = {stage: sum(each[stage] for each in flops) for stage in flops[0]}
    single = {
        "vision_tile": vision_flops(v, v.grid**2) if v else 0,
        "token": decoder_flops(d, 1, longest + max_new_tokens) + 2 * d.hidden_size * d.vocab_size,
    }
    sums = {key: sum(each[key] for each in requests) for key in requests[0]}
    weights = count_weights(config, dtype, quantize, speech)
    media = sum(x.nbytes for each in prepared for x in (*each.images, *each.sounds))
    largest = d.hidden_size * max(d.intermediate_size, d.vocab_size)
    loading = largest * itemsize if quantize or pack else 0  # the largest matrix as it was before the conversion
    return {
        "positions": sums | {"longest": longest, "with_new": longest + max_new_tokens},
        "requests": requests,
        "weights": weights,
        "kv_bytes": max(cache),
        "flops": stages | {"total": sum(stages.values())} | single,
        "peak_bytes": weights["total"]["bytes"] + max(loading, media + max(peaks)),
    }


# ---- text


def short_number(number, unit=""):
    """A number with four digits and a prefix: 1.09 GB."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000:
            break
        number /= 1000
    return f"{number:.4g} {prefix}{unit}"


def format_table(report):
    """The result of `estimate`, with ``disk``, ``missing``, ``ranks`` and ``each_rank`` added to it, as text."""
    p, f, disk, several = report["positions"], report["flops"], report["disk"], report["ranks"] > 1
    columns = [report, report["each_rank"]] if several else [report]

    def line(label, *path, unit="B", note=""):
        values = [functools.reduce(operator.getitem, path, column) for column in columns]
        return (f"{label:13}" + "".join(f"{short_number(value, unit):>13}" for value in values) + f"   {note}").rstrip()

    lines = [f"positions: {p['text']} text, {p['image']} image, {p['audio']} audio, {p['total']} in all"]
    lines += [f"  {len(report['requests'])} requests, the longest of {p['longest']}"] * (len(report["requests"]) > 1)
    lines += [f"  {p['cut']} more exceed the longest prompt and are cut off"] * (p["cut"] > 0)
    lines += ["weights" + f"{'each of ' + str(report['ranks']) + ' ranks':>32}" * several]
    for name, part in report["weights"].items():
        note = ", ".join([f"{part['parameters']:,} parameters", *([part["dtype"]] if "dtype" in part else [])])
        lines.append(line(f"  {name}", "weights", name, "bytes", note=note))
    lines += [f"  without {part}: {reason}" for part, reason in report["missing"].items()]
    stored = f"{short_number(disk['bytes'], 'B')} of {', '.join(disk['dtypes'])}"
    lines += [f"  on disk: {'no weights, ' + disk['absent'] if disk['absent'] else stored}"]
    lines += [line("KV cache", "kv_bytes", note=f"{p['with_new']} positions with the new tokens")]
    lines += ["operations (a multiply and an add are two)"]
    notes = {"vision": f"{short_number(f['vision_tile'])} a tile", "decode": f"{short_number(f['token'])} a token"}
    lines += [line(f"  {stage}", "flops", stage, unit="", note=notes.get(stage, "")) for stage in STAGES]
    return "\n".join([*lines, line("peak", "peak_bytes", note="an estimate; Python and libraries not included")])
