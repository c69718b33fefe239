"""Writes a checkpoint folder of random weights: python tools/make_checkpoint.py OUT --preset vita-1.5

Tensors are written one at a time, so the 16.6 GB of a full-size model need a few hundred megabytes of memory.
``vita-1.5`` has the layout of the release, with the configs of vision tower and audio encoder in folders of their own;
``internvl3-1b`` and ``internvl3-2b`` that in which InternVL is published; ``qwen2-7b`` and ``qwen2-0.5b`` that of
Hugging Face; ``demo`` and ``documented`` that of this project. The tokenizer has the 256 bytes and the special tokens
only. Weights are small normal numbers; norms are one. With --quantize the folder is one of this project's own whose
decoder has random int8 or int4 weights, written as such: 6.9 GB instead of 16.6.
"""

import argparse
import json
import math
import struct
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vita_ref import Vita, VitaConfig
from vita_ref.config import DecoderConfig, QuantizationConfig, VisionConfig
from vita_ref.files.checkpoint import module_names
from vita_ref.files.folders import config_json
from vita_ref.files.names import PREFIXES, PUBLISHED
from vita_ref.scale import int4, quantized_linears

QWEN2_HALF_B = VitaConfig(
    DecoderConfig(151936, 896, 4864, 24, 14, 2, 64), bos_token_id=151643, eos_token_ids=(151645,), dtype="bfloat16"
)
INTERNVL3 = VitaConfig(
    DecoderConfig(151674, 896, 4864, 24, 14, 2, 64), VisionConfig(1024, 4096, 24, 16, feature_scale=1.0, projector_norm=True),
    bos_token_id=151643, eos_token_ids=(151645,), image_aspect_ratio="stretch", template="internvl2_5", default_system="",
    dtype="bfloat16",
)  # fmt: skip
INTERNVL3_2B = replace(INTERNVL3, decoder=DecoderConfig(151674, 1536, 8960, 28, 12, 2, 128))
SIZES = {"qwen2-0.5b": QWEN2_HALF_B, "internvl3-1b": INTERNVL3, "internvl3-2b": INTERNVL3_2B}  # not among `PRESETS`
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.long: "I64"}
CODES |= {torch.uint8: "U8", torch.int8: "I8"}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")
VISION_FOLDER, AUDIO_FOLDER = "InternViT-300M-448px", "audio-encoder-Qwen2-7B-1107-weight-base-11wh-tunning"


def random_tensor(name, like, dtype, generator):
    """Values for which a forward pass stays finite: 1 for norms and scales, small normal numbers for the rest."""
    if like.dtype in (torch.uint8, torch.int8):
        low, high = (0, 256) if like.dtype == torch.uint8 else (-127, 128)
        return torch.randint(low, high, like.shape, dtype=like.dtype, generator=generator)
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if name.endswith("weight_scale"):  # the weights have nearly the spread of the others
        if like.dim() == 1:
            return torch.full(like.shape, 1 / (74 * math.sqrt(len(like))), dtype=like.dtype)
        step = 1 / (4.6 * math.sqrt(32 * len(like)))  # of uniform nibbles, whose mean is 7.5
        return torch.tensor([step, step / 2]).expand(like.shape).to(like.dtype)
    if like.dim() == 1 and name.endswith(("weight", "ls1", "ls2", "istd", "running_var")):
        return torch.ones(like.shape, dtype=dtype)
    spread = 1 / math.sqrt(like[0].numel()) if like.dim() > 1 else 0.01
    return torch.empty(like.shape, dtype=dtype).normal_(0, spread, generator=generator)


def shard_names(sizes, limit):
    """Splits tensors (name -> bytes) into lists of names, each of at most ``limit`` bytes or of one tensor."""
    shards, size = [[]], 0
    for name, nbytes in sizes.items():
        if shards[-1] and size + nbytes > limit:
            shards, size = [*shards, []], 0
        shards[-1].append(name)
        size += nbytes
    return shards


def write_shard(path, tensors, dtypes, generator):
    """One safetensors file with random values for meta tensors (name -> tensor), written one after the other."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, like in tensors.items():
        end = offset + like.numel() * dtypes[name].itemsize
        header[name] = {"dtype": CODES[dtypes[name]], "shape": list(like.shape), "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for name, like in tensors.items():
            values = random_tensor(name, like, dtypes[name], generator)
            out.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)


def write_shards(folder, tensors, dtype, shard_bytes, seed):
    """Writes random values for meta tensors (name -> tensor) into one or more files; returns their size in bytes."""
    kept = {name for name, t in tensors.items() if not t.is_floating_point() or name.endswith("weight_scale")}
    dtypes = {name: t.dtype if name in kept else dtype for name, t in tensors.items()}
    sizes = {name: t.numel() * dtypes[name].itemsize for name, t in tensors.items()}
    shards = shard_names(sizes, shard_bytes)
    generator, weight_map = torch.Generator().manual_seed(seed), {}
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(folder / file, {name: tensors[name] for name in names}, dtypes, generator)
        weight_map |= dict.fromkeys(names, file)
    total = sum(sizes.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total


def write_tokenizer(folder, size, special=SPECIAL):
    """A byte-level tokenizer of ``size`` ids: 256 bytes, fillers that no text has, and the special tokens at the end."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(sorted({*range(256)} - {*plain}))}
    first = size - len(special)
    vocab = {letters[b]: b for b in range(256)} | {f"filler{i}": i for i in range(256, first)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {str(first + i): {"content": token, "special": True} for i, token in enumerate(special)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added, "eos_token": "<|im_end|>"}))


def qwen2_json(config, dtype):
    """A decoder's config with the keys of Hugging Face."""
    c = config.decoder
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings")
    return {"model_type": "qwen2", "hidden_act": "silu", "torch_dtype": dtype} | {k: getattr(c, k) for k in keys}


def intern_vit_json(vision):
    """A vision tower's config with upstream's keys."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    keys += ("num_channels", "layer_norm_eps", "qkv_bias")
    raw = {"model_type": "intern_vit_6b", "hidden_act": "gelu", "norm_type": "layer_norm", "qk_normalization": False}
    return raw | {k: getattr(vision, k) for k in keys}


def internvl_json(config, dtype):
    """The config of a published InternVL."""
    return {
        "model_type": "internvl_chat", "downsample_ratio": 1 / config.vision.shuffle, "dynamic_image_size": True,
        "force_image_size": config.vision.image_size, "min_dynamic_patch": config.min_tiles,
        "max_dynamic_patch": config.max_tiles, "use_thumbnail": config.use_thumbnail, "ps_version": "v2",
        "select_layer": -1, "template": config.template, "torch_dtype": dtype,
        "llm_config": qwen2_json(config, dtype) | special_ids(config), "vision_config": intern_vit_json(config.vision),
    }  # fmt: skip


def special_ids(config):
    """The special ids in a config of Hugging Face."""
    return {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids)}


def write_towers(folder, config):
    """The folders of the released vision tower and audio encoder: configs only; the weights are in the shards."""
    v, a = config.vision, config.audio
    (folder / VISION_FOLDER).mkdir(exist_ok=True)
    (folder / AUDIO_FOLDER).mkdir(exist_ok=True)
    (folder / VISION_FOLDER / "config.json").write_text(json.dumps(intern_vit_json(v), indent=1))
    bins = a.num_mel_bins
    sub = {"subsampling-rate": 4, "subsampling-input-dim": bins, "subsampling-output-dim": a.subsampling_size}
    enc = {
        "attention-dim": a.hidden_size, "attention-heads": a.num_attention_heads, "linear-units": a.intermediate_size,
        "num-blocks": a.num_hidden_layers, "pos-enc-class": a.position_encoding, "dynamic-chunks": a.dynamic_chunks,
        "normalize-before": a.normalize_before, "concat-after": a.concat_after,
        "chunk_size": a.chunk_size, "left_chunks": a.left_chunks,
    }  # fmt: skip
    adapter = {"adpter_type": "subsampling", "kernel_size": a.adapter_kernel_size}
    adapter |= {"norm": a.adapter_norm, "activation_func": a.adapter_activation}
    fbank = {"dither": a.dither, "frame_length": a.frame_length, "frame_shift": a.frame_shift, "num_mel_bins": bins}
    layers = {"subsampling": sub, "transformer": {f"transformer-{k}": v for k, v in enc.items()}}
    yaml = {  # JSON is YAML too
        "input_dim": bins, "is_json_cmvn": True,
        "encoder_conf": {"overview_conf": {"encoder-layer-config": "subsampling-transformer"}, "para_conf": layers},
        "model_conf": adapter,
        "dataset_conf": {"fbank_conf": fbank, "resample_conf": {"resample_rate": a.sample_rate}},
    }  # fmt: skip
    (folder / AUDIO_FOLDER / "train.yaml").write_text(json.dumps(yaml, indent=1))
    cmvn = {"mean_stat": [0.0] * bins, "var_stat": [1.0] * bins, "frame_num": 1}
    (folder / AUDIO_FOLDER / "global_cmvn").write_text(json.dumps(cmvn))


def write(folder, preset, dtype=None, shard_gb=2.0, seed=0, config=None, quantize=None):
    """Writes the folder and returns the size of its weights in bytes. ``config`` replaces the preset's sizes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = config or SIZES.get(preset) or VitaConfig.preset(preset)
    is_internvl = preset.startswith("internvl")
    dtype = dtype or config.dtype
    if quantize:
        group = int4.GROUP if quantize == "int4" else None
        config = replace(config, quantization=QuantizationConfig(quantize, group))
    with torch.device("meta"):
        vita = Vita(config)
        if quantize:
            quantized_linears(vita.decoder, stored=config.quantization)
    state = vita.state_dict()
    is_internvl = is_internvl and not quantize
    tensors = {name: state[own] for name, own in module_names(vita, PUBLISHED if is_internvl else PREFIXES).items()}
    if is_internvl:
        (folder / "config.json").write_text(json.dumps(internvl_json(config, dtype), indent=1))
        write_tokenizer(folder, config.eos_token_ids[0] + 1 + len(IMAGE_TOKENS), SPECIAL + IMAGE_TOKENS)
    elif preset in ("vita-1.5", "qwen2-7b", "qwen2-0.5b") and not quantize:
        raw = qwen2_json(config, dtype) | special_ids(config)
        if preset == "vita-1.5":
            write_towers(folder, config)
            raw |= {"model_type": "vita-Qwen2", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": f"/train/{VISION_FOLDER}"}
            raw |= {"mm_audio_encoder": f"/train/{AUDIO_FOLDER}", "tokenizer_model_max_length": config.tokenizer_model_max_length}
        (folder / "config.json").write_text(json.dumps(raw, indent=1))
        write_tokenizer(folder, config.eos_token_ids[0] + 1)
    else:
        (folder / "config.json").write_text(config_json(replace(config, dtype=dtype)))
        write_tokenizer(folder, config.eos_token_ids[0] + 1 if quantize else config.decoder.vocab_size)
    return write_shards(folder, tensors, getattr(torch, dtype), int(shard_gb * 1e9), seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="vita-1.5", choices=["documented", "vita-1.5", "qwen2-7b", "demo", *SIZES])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shard-gb", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quantize", choices=["int8", "int4"], help="a quantised folder of this project's own kind")
    a = parser.parse_args()
    nbytes = write(a.folder, a.preset, a.dtype, a.shard_gb, a.seed, quantize=a.quantize)
    print(f"{a.folder}: {nbytes / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
