"""The sizes of every part, as frozen dataclasses: presets, and reading them from a checkpoint folder.

Three kinds of folder are told apart by ``model_type`` in ``config.json``: this project's own
(``vita_ref``), plain Qwen2 and Qwen2.5 (``qwen2``), and VITA-1.5 as it was released
(``vita-Qwen2``), whose eye and ear have folders and configs of their own.

Test: ``pytest tests/test_config.py``
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path


def _check_sizes(config):
    """Refuses sizes that are no whole numbers of at least 1."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type is int and (type(value) is not int or value < 1):
            raise ValueError(f"{f.name} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder, or the Llama-like one that speaks (``attention_bias=False``)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False
    attention_bias: bool = True  # on q, k and v; Qwen2 has them, o never does

    def __post_init__(self):
        _check_sizes(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")


@dataclass(frozen=True)
class VisionConfig:
    """InternViT, the pixel shuffle behind it, and the projector into the decoder."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 448  # pixels, a side of a square tile
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    keep_class_token: bool = False
    shuffle: int = 2  # shuffle x shuffle patches become one position; 1 leaves them apart
    feature_scale: float = 0.5  # quirk: VITA-1.5 multiplies the features by its shuffle scale
    image_mean: tuple = (0.485, 0.456, 0.406)
    image_std: tuple = (0.229, 0.224, 0.225)

    def __post_init__(self):
        _check_sizes(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"the eye's hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.shuffle > 1 and self.keep_class_token:
            raise ValueError("a pixel shuffle needs a square grid: keep_class_token must be off")
        if self.image_size % (self.patch_size * self.shuffle):
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size x shuffle "
                f"({self.patch_size} x {self.shuffle})"
            )

    @property
    def grid(self):
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self):
        """Decoder positions that one tile takes."""
        return (self.grid // self.shuffle) ** 2 + self.keep_class_token

    @property
    def feature_size(self):
        """Width of a feature as the projector gets it."""
        return self.hidden_size * self.shuffle**2


@dataclass(frozen=True)
class AudioConfig:
    """The Whale encoder and its adapter, as ``train.yaml`` describes them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    subsampling_size: int  # width between the convolutions and the transformer
    num_mel_bins: int = 80
    sample_rate: int = 16000  # Hz
    frame_length: float = 25.0  # ms
    frame_shift: float = 10.0  # ms
    dither: float = 0.0  # as train.yaml has it; inference here never dithers
    layer_norm_eps: float = 1e-5
    position_encoding: str = "rel-enc"  # or "abs-enc", "no-enc"
    normalize_before: bool = True
    concat_after: bool = False
    chunk_size: int = -1  # encoder positions a chunk; 0 or less: every position sees every other
    left_chunks: int = -1  # chunks of the past that a chunk sees; below 0: all
    dynamic_chunks: bool = False  # quirk: upstream draws a random mask even at inference; here never
    adapter_kernel_size: int = 5
    adapter_norm: str = "layer"  # or "batch"
    adapter_activation: str = "gelu"  # or "relu"
    num_prompts: int = 0  # learned rows in front of every sound


@dataclass(frozen=True)
class VitaConfig:
    """Everything that ``Vita`` is built from; a part that is absent is None."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    speech: "SpeechConfig | None" = None  # read from a folder of its own, see `Speech.from_pretrained`
    image_token_index: int = -200
    audio_token_index: int = -500
    bos_token_id: int | None = None
    eos_token_ids: tuple = ()
    pad_token_id: int | None = None
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    image_aspect_ratio: str = "square"
    max_tiles: int = 12
    template: str = "chatml"  # a name in vita_ref.prompt.TEMPLATES
    dtype: str = "float32"
    missing: dict = field(default_factory=dict)  # part -> why it could not be read

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")

    @staticmethod
    def preset(name):
        """The config of a known model: ``documented``, ``vita-1.5``, ``qwen2-7b`` or ``demo``.

        Source: ``documented`` has the figures of upstream's language-model-layer page, the others
        those of the released checkpoints.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        return PRESETS[name]

    @staticmethod
    def from_folder(folder, *, vision_dir=None, audio_dir=None):
        """Reads ``config.json`` of any of the three kinds of folder.

        Raises: ValueError where the file is missing or asks for what this code does not do.
        """
        folder = Path(folder)
        raw = _read_json(folder / "config.json")
        kind = raw.get("model_type")
        readers = {"vita_ref": _own, "qwen2": _qwen2, "vita-Qwen2": _vita}
        if kind not in readers:
            raise ValueError(f"{folder / 'config.json'}: model_type is {kind!r}, expected one of {', '.join(readers)}")
        try:
            return _vita(raw, folder, vision_dir, audio_dir) if kind == "vita-Qwen2" else readers[kind](raw, folder)
        except (TypeError, ZeroDivisionError, AttributeError) as error:
            raise ValueError(f"{folder / 'config.json'} has a value that cannot be: {error}") from None

    def to_json(self):
        """The text of this project's own ``config.json``."""
        parts = {k: v for k, v in asdict(self).items() if v is not None and k not in ("missing", "speech")}
        return json.dumps({"model_type": "vita_ref"} | parts, indent=1) + "\n"


def _read_json(path):
    if not path.is_file():
        raise ValueError(f"{path.parent} is no checkpoint folder: it has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if type(found) is not dict:
        raise ValueError(f"{path} holds {type(found).__name__}, expected a JSON object")
    return found


def _need(raw, path, *keys):
    absent = [k for k in keys if k not in raw]
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}")
    return [raw[k] for k in keys]


def _build(cls, raw, path):
    """A dataclass from the JSON object that `asdict` made of it, every key known."""
    if type(raw) is not dict:
        raise ValueError(f"{path}: {cls.__name__} must be a JSON object, got {raw!r}")
    names = {f.name for f in fields(cls)}
    unknown = sorted(set(raw) - names)
    if unknown:
        raise ValueError(f"{path}: {cls.__name__} has no {', '.join(unknown)}")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def _own(raw, folder):
    path = folder / "config.json"
    parts = {"decoder": DecoderConfig, "vision": VisionConfig, "audio": AudioConfig}
    built = {k: _build(cls, raw[k], path) for k, cls in parts.items() if raw.get(k) is not None}
    rest = {k: v for k, v in raw.items() if k not in parts and k != "model_type"}
    return _build(VitaConfig, rest | built, path)


def _as_ids(ids):
    """Token ids as a tuple, from None, one id or a list."""
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def _qwen2(raw, folder):
    path = folder / "config.json"
    vocab, width, mlp, layers, heads = _need(
        raw, path, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    ropes = [raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}]
    scalings = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
    refused = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "rope_scaling": scalings != {"default"},
        "use_sliding_window": bool(raw.get("use_sliding_window")),
    }
    if any(refused.values()):
        raise ValueError(f"{path}: not supported here: {', '.join(k for k, bad in refused.items() if bad)}")
    decoder = DecoderConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or width // heads,
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        rope_theta=float(raw.get("rope_theta") or ropes[0].get("rope_theta") or 10000.0),
        max_position_embeddings=raw.get("max_position_embeddings", 32768),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
    )
    generation = folder / "generation_config.json"
    defaults = _read_json(generation) if generation.is_file() else {}
    eos = defaults.get("eos_token_id", raw.get("eos_token_id"))
    return VitaConfig(
        decoder,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_ids=_as_ids(eos),
        pad_token_id=defaults.get("pad_token_id", raw.get("pad_token_id")),
        dtype=raw.get("dtype") or raw.get("torch_dtype") or "float32",
    )


def _vita(raw, folder, vision_dir=None, audio_dir=None):
    config, missing = _qwen2(raw, folder), {}
    vision = audio = None
    if found := _part_folder("vision", raw.get("mm_vision_tower"), folder, vision_dir, missing):
        vision = _intern_vit(found)
    if found := _part_folder("audio", raw.get("mm_audio_encoder"), folder, audio_dir, missing):
        audio = _whale(found)
        prompts = raw.get("audio_prompt_num", 0) if raw.get("audio_prompt_finetune") else 0
        audio = replace(audio, num_prompts=prompts)
    if raw.get("mm_projector_type", "mlp2x_gelu") != "mlp2x_gelu" or raw.get("use_s2"):
        raise ValueError(f"{folder / 'config.json'}: only the mlp2x_gelu projector without S2 is supported")
    return replace(
        config,
        vision=vision,
        audio=audio,
        tokenizer_padding_side=raw.get("tokenizer_padding_side", "right"),
        tokenizer_model_max_length=raw.get("tokenizer_model_max_length"),
        image_aspect_ratio=raw.get("image_aspect_ratio") or "square",
        template="vita",
        missing=missing,
    )


def _part_folder(part, named, folder, given, missing):
    """Where a tower's config lies: as given, as config.json says, or a folder of that name in or beside ours.

    The paths in a released config.json are those of the machine that trained it.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise ValueError(f"--{part}-dir {given} is not a folder")
        return Path(given)
    if named is None:
        return None
    base = Path(named).name
    places = [folder / named, folder / base, folder.parent / base]
    for place in places:
        if place.is_dir():
            return place
    missing[part] = f"its folder {base} is neither in {folder} nor beside it (--{part}-dir names another place)"
    return None


def _intern_vit(folder):
    path = folder / "config.json"
    raw = _read_json(path)
    width, mlp, layers, heads = _need(
        raw, path, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
    )
    refused = {
        "hidden_act": raw.get("hidden_act", "gelu") != "gelu",
        "qk_normalization": raw.get("qk_normalization", True),  # what is left out is as upstream's class has it
        "norm_type": raw.get("norm_type", "rms_norm") != "layer_norm",
    }
    if any(refused.values()):
        raise ValueError(f"{path}: not supported here: {', '.join(k for k, bad in refused.items() if bad)}")
    pixels = folder / "preprocessor_config.json"
    pixels = _read_json(pixels) if pixels.is_file() else {}
    defaults = {f.name: f.default for f in fields(VisionConfig)}
    return VisionConfig(
        width,
        mlp,
        layers,
        heads,
        image_size=raw.get("image_size", 224),
        patch_size=raw.get("patch_size", 14),
        num_channels=raw.get("num_channels", 3),
        layer_norm_eps=raw.get("layer_norm_eps", 1e-6),
        qkv_bias=raw.get("qkv_bias", False),
        image_mean=tuple(pixels.get("image_mean", defaults["image_mean"])),
        image_std=tuple(pixels.get("image_std", defaults["image_std"])),
    )


def _whale(folder):
    path = folder / "train.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is no audio encoder folder: it has no train.yaml")
    try:
        import yaml
    except ImportError:
        raise ValueError(f"reading {path} needs pyyaml: pip install pyyaml") from None
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    try:
        layout = raw["encoder_conf"]["overview_conf"]["encoder-layer-config"]
        parts = raw["encoder_conf"]["para_conf"]
        adapter, sound = raw["model_conf"], raw["dataset_conf"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks {error}") from None
    if layout != "subsampling-transformer":
        raise ValueError(f"{path}: encoder-layer-config is {layout!r}, expected 'subsampling-transformer'")

    def options(part):  # upstream takes '-' and '_' alike
        (found,) = _need(parts, path, part)
        return {k.replace("-", "_").removeprefix(part + "_"): v for k, v in found.items()}

    sub, enc, fbank = options("subsampling"), options("transformer"), sound.get("fbank_conf", {})
    width, mlp, layers, heads = _need(enc, path, "attention_dim", "linear_units", "num_blocks", "attention_heads")
    (sub_size,) = _need(sub, path, "output_dim")
    expected = {
        "subsampling-rate": sub.get("rate", 4) == 4,
        "transformer-input-layer": enc.get("input_layer", "linear") == "linear",
        "transformer-positionwise-layer-type": enc.get("positionwise_layer_type", "linear") == "linear",
        "transformer-pos-enc-class": enc.get("pos_enc_class", "abs-enc") in ("rel-enc", "abs-enc", "no-enc"),
        "adpter_type": adapter.get("adpter_type", "cnn") == "subsampling",
        "norm": adapter.get("norm", "batch") in ("layer", "batch"),
        "activation_func": adapter.get("activation_func", "relu") in ("gelu", "relu"),
    }
    if not all(expected.values()):
        raise ValueError(f"{path}: not supported here: {', '.join(k for k, good in expected.items() if not good)}")
    return AudioConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        subsampling_size=sub_size,
        num_mel_bins=raw.get("input_dim", 80),
        sample_rate=sound.get("resample_conf", {}).get("resample_rate", 16000),
        frame_length=fbank.get("frame_length", 25),
        frame_shift=fbank.get("frame_shift", 10),
        dither=fbank.get("dither", 0.0),
        position_encoding=enc.get("pos_enc_class", "abs-enc"),
        normalize_before=enc.get("normalize_before", True),
        concat_after=enc.get("concat_after", False),
        chunk_size=enc.get("chunk_size", -1),
        left_chunks=enc.get("left_chunks", -1),
        dynamic_chunks=enc.get("dynamic_chunks", True),
        adapter_kernel_size=adapter.get("kernel_size", 3),
        adapter_norm=adapter.get("norm", "batch"),
        adapter_activation=adapter.get("activation_func", "relu"),
    )


_INTERN_VIT = VisionConfig(1024, 4096, 24, 16)
_WHALE = AudioConfig(1024, 4096, 24, 16, subsampling_size=1024)
_QWEN2_7B = DecoderConfig(152064, 3584, 18944, 28, 28, 4, 128)

PRESETS = {
    "documented": VitaConfig(
        DecoderConfig(151936, 4096, 11008, 32, 32, 32, 128),
        replace(_INTERN_VIT, keep_class_token=True, shuffle=1, feature_scale=1.0),
        _WHALE,
        image_token_index=151936,
        audio_token_index=151937,
    ),
    "vita-1.5": VitaConfig(
        _QWEN2_7B,
        _INTERN_VIT,
        _WHALE,
        bos_token_id=151643,
        eos_token_ids=(151645,),
        tokenizer_model_max_length=4600,
        template="vita",
        dtype="bfloat16",
    ),
    "qwen2-7b": VitaConfig(
        _QWEN2_7B, bos_token_id=151643, eos_token_ids=(151645, 151643), pad_token_id=151643, dtype="bfloat16"
    ),
    "demo": VitaConfig(
        DecoderConfig(900, 256, 640, 4, 4, 2, 64, rope_theta=1e4, max_position_embeddings=2048),
        VisionConfig(192, 512, 5, 6, image_size=112, layer_norm_eps=1e-6),
        AudioConfig(192, 512, 4, 6, subsampling_size=96),
        pad_token_id=0,
        bos_token_id=None,
        eos_token_ids=(4,),
        max_tiles=1,
        template="demo",
    ),
}


@dataclass(frozen=True)
class SpeechConfig:
    """The decoder that speaks: rows of text in, codec tokens out."""

    num_codes: int
    num_pre_layers: int  # bidirectional layers in front of the decoder's own
    decoder: DecoderConfig

    @property
    def specials(self):
        """The four ids behind the codes: bos in front of the text, sos before the first token, eos, pad."""
        return tuple(range(self.num_codes, self.num_codes + 4))

    @staticmethod
    def from_file(path):
        """Reads ``decoder/model.json``: [width, codes, options].

        Raises: ValueError where the file is missing or asks for what this code does not do.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path.parent} is no folder of a speech decoder: it has no {path.name}")
        try:
            width, codes, options = json.loads(path.read_text(encoding="utf-8"))
            heads, size, mlp, layers = (
                options[f"transformer_{k}"] for k in ("attention_heads", "attention_dim", "linear_units", "num_blocks")
            )
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not [width, codes, options of a transformer]: {error!r}") from None
        if size != width or width % heads:
            raise ValueError(f"{path}: attention_dim ({size}) must be {width} and a multiple of {heads} heads")
        decoder = DecoderConfig(
            codes + 4, width, mlp, layers, heads, heads, width // heads, rope_theta=1e4, attention_bias=False
        )
        return SpeechConfig(codes, layers // 2, decoder)


@dataclass(frozen=True)
class CodecConfig:
    """The codec's way from tokens to sound: code books and a HiFi-GAN generator."""

    n_codes: int
    global_tokens: tuple  # the voice: one code for each global code book
    upsample_rates: tuple
    upsample_kernel_sizes: tuple
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple
    resblock_dilation_sizes: tuple
    sampling_rate: int = 24000  # Hz

    def __post_init__(self):
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"upsample kernel {kernel} must be its rate {rate} plus an even number")

    @property
    def hop(self):
        """Samples of sound that one token becomes."""
        return math.prod(self.upsample_rates)

    @staticmethod
    def from_file(path):
        """Reads ``codec/model.json``.

        Raises: ValueError where the file is missing or asks for what this code does not do.
        """
        path = Path(path)
        raw = _read_json(path)
        expected = {"resblock": "1", "n_code_groups": 1, "residul_layer": 1}
        wrong = [f"{k} {raw.get(k)!r}, expected {v!r}" for k, v in expected.items() if raw.get(k) != v]
        names = [f.name for f in fields(CodecConfig)]
        values = dict(zip(names, _need(raw, path, *names)))
        if len(values["global_tokens"]) != raw.get("global_code_num"):
            wrong.append(f"{len(values['global_tokens'])} global_tokens, expected {raw.get('global_code_num')}")
        if wrong:
            raise ValueError(f"{path}: not supported here: {'; '.join(wrong)}")
        values["resblock_dilation_sizes"] = [tuple(d) for d in values["resblock_dilation_sizes"]]
        return _build(CodecConfig, values, path)
