"""The sizes and options of every part, as frozen dataclasses, and presets for known models. ``fields.py`` has their types.

    VitaConfig
      decoder   DecoderConfig   language model
      vision    VisionConfig    vision tower, pixel shuffle and projector
      audio     AudioConfig     audio encoder and adapter
      speech    SpeechConfig    speech decoder

A part that a model does not have is None. Nothing here opens a file: ``files/folders.py`` builds a ``VitaConfig``
from a checkpoint folder, ``files/speech.py`` builds the configs of a speech folder.

Test: ``pytest tests/test_config.py``
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from .fields import (
    Code,
    Eps,
    Layers,
    Length,
    Positive,
    Rate,
    Signed,
    Size,
    TokenId,
    Vocabulary,
    check_fields,
)

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class YarnConfig:
    """Rotary positions for texts that are ``factor`` times as long as those of pretraining (see `rope_angles`).

    Source: Peng et al. 2023 (YaRN).
    """

    factor: Annotated[float, 1, 1e6]
    original_max_position_embeddings: Length
    beta_fast: Positive = 32.0  # pairs that turn more often than this in the original length keep their rate
    beta_slow: Positive = 1.0  # pairs that turn less often than this turn ``factor`` times slower
    attention_factor: Positive | None = None  # what queries and keys are multiplied by; None: 0.1 ln(factor) + 1
    truncate: bool = True  # the two limits are rounded to whole pairs

    def __post_init__(self):
        check_fields(self)
        if self.beta_fast <= self.beta_slow:
            raise ValueError(f"beta_fast ({self.beta_fast}) must be above beta_slow ({self.beta_slow})")

    @property
    def attention_scale(self):
        """What queries and keys are multiplied by. Example: factor 4 gives 1.1386."""
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder. The speech decoder is the same without biases; Qwen3 also has ``qk_norm``."""

    vocab_size: Vocabulary  # V
    hidden_size: Size  # D
    intermediate_size: Size  # F, width of the MLP
    num_hidden_layers: Layers  # L
    num_attention_heads: Size  # H
    num_key_value_heads: Size  # G
    head_dim: Size  # K
    rms_norm_eps: Eps = 1e-6
    rope_theta: Annotated[float, 1.001, 1e15] = 1e6
    max_position_embeddings: Length = 32768
    tie_word_embeddings: bool = False
    attention_bias: bool = True  # on q, k and v; o never has one
    qk_norm: bool = False  # an RMSNorm of each head of q and k, as in Qwen3
    rope_scaling: YarnConfig | None = None

    def __post_init__(self):
        check_fields(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if self.num_attention_heads * self.head_dim > 2**20:
            raise ValueError(f"num_attention_heads x head_dim ({self.num_attention_heads} x {self.head_dim}) is too large")


@dataclass(frozen=True)
class VisionConfig:
    """The InternViT vision tower, the pixel shuffle after it, and the projector into the decoder.

    Example: a tile of 448 x 448 pixels has 32 x 32 patches of 14 x 14 pixels. The shuffle joins 2 x 2 patches, so the
    tile takes 16 x 16 = 256 positions of the decoder, and the projector gets 4 * 1024 numbers for each.
    """

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    image_size: Annotated[int, 1, 4096] = 448  # pixels, one side of a square tile
    patch_size: Annotated[int, 1, 4096] = 14  # pixels, one side of a square patch
    num_channels: Annotated[int, 1, 16] = 3
    layer_norm_eps: Eps = 1e-6
    qkv_bias: bool = True
    keep_class_token: bool = False
    shuffle: Annotated[int, 1, 16] = 2  # shuffle x shuffle patches are joined into one position; 1 is no shuffle
    # quirk: Features are multiplied by 0.5: upstream multiplies them by the scale factor of its pixel shuffle.
    feature_scale: Positive = 0.5
    projector_norm: bool = False  # a LayerNorm in front of the projector, as in InternVL
    image_mean: tuple[Annotated[float, -1e6, 1e6], ...] = (0.485, 0.456, 0.406)  # per channel, of pixels in 0..1
    image_std: tuple[Positive, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        check_fields(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size of the vision tower ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(f"{name} must have {self.num_channels} numbers, got {len(getattr(self, name))}")
        if self.shuffle > 1 and self.keep_class_token:
            raise ValueError("keep_class_token must be False with a pixel shuffle, which needs a square grid")
        if self.image_size % (self.patch_size * self.shuffle):
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size x shuffle "
                f"({self.patch_size} x {self.shuffle})"
            )

    @property
    def grid(self):
        """Number of patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self):
        """Number of decoder positions that one tile takes."""
        return (self.grid // self.shuffle) ** 2 + self.keep_class_token

    @property
    def feature_size(self):
        """Width of one feature at the input of the projector."""
        return self.hidden_size * self.shuffle**2


@dataclass(frozen=True)
class AudioConfig:
    """The Whale audio encoder and its adapter. Source: ``train.yaml`` in the folder of the released encoder."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    subsampling_size: Size  # channels of the convolutions in front of the transformer layers
    num_mel_bins: Annotated[int, 7, 1024] = 80  # the two convolutions need 7
    sample_rate: Rate = 16000  # Hz
    frame_length: Annotated[float, 1, 1000] = 25.0  # ms
    frame_shift: Annotated[float, 1, 1000] = 10.0  # ms
    dither: Annotated[float, 0, 1e6] = 0.0  # kept from train.yaml; inference never dithers
    layer_norm_eps: Eps = 1e-5
    position_encoding: Literal["rel-enc", "abs-enc", "no-enc"] = "rel-enc"
    normalize_before: bool = True
    concat_after: bool = False
    chunk_size: Signed = -1  # encoder positions per chunk; 0 or less: every position attends to every other
    left_chunks: Signed = -1  # number of earlier chunks that a chunk attends to; negative: all
    # quirk: The mask is the same in every call: upstream draws a random mask, at inference too, if this is True.
    dynamic_chunks: bool = False
    adapter_kernel_size: Annotated[int, 1, 1024] = 5
    adapter_norm: Literal["layer", "batch"] = "layer"
    adapter_activation: Literal["gelu", "relu"] = "gelu"
    num_prompts: Annotated[int, 0, 4096] = 0  # learned rows in front of every sound

    def __post_init__(self):
        check_fields(self)
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size of the audio encoder ({self.hidden_size}) must be even and a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if int(self.sample_rate * self.frame_length / 1000) < 2:
            raise ValueError(f"frame_length ({self.frame_length} ms) is too short at {self.sample_rate} Hz")


@dataclass(frozen=True)
class SpeechConfig:
    """The speech decoder: rows of text embeddings in, codec tokens out."""

    num_codes: Size  # codec tokens; the vocabulary has four special tokens more
    num_pre_layers: Annotated[int, 0, 1000]  # bidirectional layers before those of the decoder
    decoder: DecoderConfig

    def __post_init__(self):
        check_fields(self)

    @property
    def specials(self):
        """The special ids, after those of the codes: bos before the text, sos before the first token, eos, pad."""
        return tuple(range(self.num_codes, self.num_codes + 4))


@dataclass(frozen=True)
class CodecConfig:
    """The vocoder: code books, and a HiFi-GAN generator that turns codec tokens into sound."""

    n_codes: Size
    global_tokens: tuple[Code, ...]  # the default speaker: one code for each global code book
    upsample_rates: tuple[Annotated[int, 1, 1024], ...]
    upsample_kernel_sizes: tuple[Annotated[int, 1, 4096], ...]
    upsample_initial_channel: Size
    resblock_kernel_sizes: tuple[Annotated[int, 1, 1024], ...]
    resblock_dilation_sizes: tuple[tuple[Annotated[int, 1, 1024], ...], ...]
    sampling_rate: Rate = 24000  # Hz

    def __post_init__(self):
        check_fields(self)
        self._check_books_and_blocks()
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels):
            raise ValueError(f"a codec needs one kernel for each rate, got {len(kernels)} and {len(rates)}")
        for rate, kernel in zip(rates, kernels):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"upsample kernel {kernel} must be its rate {rate} plus an even number")

    def _check_books_and_blocks(self):
        """Checks what the code books and the residual blocks need."""
        books, blocks = len(self.global_tokens), len(self.resblock_kernel_sizes)
        if not books or 128 % books or max(self.global_tokens) >= self.n_codes:
            raise ValueError(f"global_tokens must be 1, 2, 4, ... or 128 codes below n_codes ({self.n_codes})")
        if not 0 < blocks == len(self.resblock_dilation_sizes) <= 16 or not all(self.resblock_dilation_sizes):
            raise ValueError("resblock_dilation_sizes must have a list for each of the 1 to 16 resblock_kernel_sizes")
        if not all(kernel % 2 for kernel in self.resblock_kernel_sizes):
            raise ValueError(f"resblock_kernel_sizes must be odd, got {self.resblock_kernel_sizes}")
        stages = len(self.upsample_rates)
        if not 0 < stages <= 16 or self.upsample_initial_channel >> stages == 0 or self.hop > 2**20:
            raise ValueError(
                f"upsample_rates must be 1 to 16 numbers whose product is at most {2**20}, and upsample_initial_channel "
                f"({self.upsample_initial_channel}) is halved by each of the {stages}"
            )

    @property
    def hop(self):
        """Number of samples that one codec token becomes. Example: rates (3, 5, 8, 5) give 600."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class QuantizationConfig:
    """How the matrices of a decoder are stored, if they are quantised (see ``scale/int8.py`` and ``scale/int4.py``)."""

    method: Literal["int8", "int4"]
    group_size: Annotated[int, 2, 1024] | None = None  # inputs that share a step, of int4
    weight_error: Annotated[float, 0, 1e6] | None = None  # measured: root of the mean squared error over that of the weights

    def __post_init__(self):
        check_fields(self)
        if (self.method == "int4") == (self.group_size is None) or (self.group_size or 0) % 2:
            raise ValueError(f"group_size must be an even number for int4 and null for int8, got {self.group_size}")


@dataclass(frozen=True)
class VitaConfig:
    """The parts of a ``Vita`` model (None if the model does not have the part), and the options of its checkpoint."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    speech: SpeechConfig | None = None  # set by `Speech.from_pretrained`, from a folder of its own
    image_token_index: Signed = -200
    audio_token_index: Signed = -500
    bos_token_id: TokenId | None = None
    eos_token_ids: tuple[TokenId, ...] = ()
    pad_token_id: TokenId | None = None
    tokenizer_padding_side: Literal["right", "left"] = "right"
    tokenizer_model_max_length: Length | None = None
    image_aspect_ratio: str = "square"  # of video frames: "pad" adds borders, "stretch" distorts, others crop
    min_tiles: Annotated[int, 1, 1000] = 1  # per image, without the thumbnail
    max_tiles: Annotated[int, 1, 1000] = 12
    use_thumbnail: bool = True  # behind the tiles of an image, if there are several
    template: Literal["chatml", "vita", "demo", "internvl", "internvl2_5", "Hermes-2"] = "chatml"  # see `TEMPLATES`
    default_system: str | None = None  # the system text of a request without one; None: that of the chat template
    dtype: Literal[DTYPES] = "float32"
    quantization: QuantizationConfig | None = None  # of the stored weights
    missing: dict = field(default_factory=dict)  # "vision" or "audio" -> why the part could not be read

    def __post_init__(self):
        check_fields(self)
        if self.image_token_index == self.audio_token_index:
            raise ValueError(f"image_token_index and audio_token_index are both {self.image_token_index}")
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles ({self.min_tiles}) must be at most max_tiles ({self.max_tiles})")
        if self.vision and self.max_tiles * self.vision.image_size**2 > 2**26:
            raise ValueError(f"max_tiles ({self.max_tiles}) tiles of {self.vision.image_size} pixels squared are too large")

    @staticmethod
    def preset(name: str) -> "VitaConfig":
        """The config of a known model: ``documented``, ``vita-1.5``, ``qwen2-7b`` or ``demo``.

        Source: ``documented`` has the figures of upstream's language-model-layer page; ``vita-1.5`` and ``qwen2-7b``
        are the released checkpoints; ``demo`` is the model whose weights come with this project.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset is named {name!r}; the presets are {', '.join(PRESETS)}")
        return PRESETS[name]


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
        VisionConfig(192, 512, 5, 6, image_size=112),
        AudioConfig(192, 512, 4, 6, subsampling_size=96),
        eos_token_ids=(4,),
        pad_token_id=0,
        max_tiles=1,
        template="demo",
    ),
}
