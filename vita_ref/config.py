"""The sizes and options of every part, as frozen dataclasses, and presets for known models.

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
from dataclasses import dataclass, field, fields, replace

DTYPES = ("float32", "bfloat16", "float16")


def _check_sizes(config):
    """Refuses a field of type int that is not an int of at least 1."""
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type is int and (type(value) is not int or value < 1):
            raise ValueError(f"{f.name} must be an integer of at least 1, got {value!r}")


@dataclass(frozen=True)
class DecoderConfig:
    """A Qwen2 decoder. The speech decoder is the same without biases (``attention_bias=False``)."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F, width of the MLP
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    num_key_value_heads: int  # G
    head_dim: int  # K
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False
    attention_bias: bool = True  # on q, k and v; o never has one

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
    """The InternViT vision tower, the pixel shuffle after it, and the projector into the decoder.

    Example: a tile of 448 x 448 pixels has 32 x 32 patches of 14 x 14 pixels. The shuffle joins 2 x 2 patches, so the
    tile takes 16 x 16 = 256 positions of the decoder, and the projector gets 4 * 1024 numbers for each.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 448  # pixels, one side of a square tile
    patch_size: int = 14  # pixels, one side of a square patch
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    keep_class_token: bool = False
    shuffle: int = 2  # shuffle x shuffle patches are joined into one position; 1 is no shuffle
    # quirk: Features are multiplied by 0.5: upstream multiplies them by the scale factor of its pixel shuffle.
    feature_scale: float = 0.5
    image_mean: tuple = (0.485, 0.456, 0.406)  # per channel, of pixels in 0..1
    image_std: tuple = (0.229, 0.224, 0.225)

    def __post_init__(self):
        _check_sizes(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size of the vision tower ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
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

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    subsampling_size: int  # channels of the convolutions in front of the transformer layers
    num_mel_bins: int = 80
    sample_rate: int = 16000  # Hz
    frame_length: float = 25.0  # ms
    frame_shift: float = 10.0  # ms
    dither: float = 0.0  # kept from train.yaml; inference never dithers
    layer_norm_eps: float = 1e-5
    position_encoding: str = "rel-enc"  # or "abs-enc", "no-enc"
    normalize_before: bool = True
    concat_after: bool = False
    chunk_size: int = -1  # encoder positions per chunk; 0 or less: every position attends to every other
    left_chunks: int = -1  # number of earlier chunks that a chunk attends to; negative: all
    # quirk: The mask is the same in every call: upstream draws a random mask, at inference too, if this is True.
    dynamic_chunks: bool = False
    adapter_kernel_size: int = 5
    adapter_norm: str = "layer"  # or "batch"
    adapter_activation: str = "gelu"  # or "relu"
    num_prompts: int = 0  # learned rows in front of every sound


@dataclass(frozen=True)
class SpeechConfig:
    """The speech decoder: rows of text embeddings in, codec tokens out."""

    num_codes: int  # codec tokens; the vocabulary has four special tokens more
    num_pre_layers: int  # bidirectional layers before those of the decoder
    decoder: DecoderConfig

    @property
    def specials(self):
        """The special ids, after those of the codes: bos before the text, sos before the first token, eos, pad."""
        return tuple(range(self.num_codes, self.num_codes + 4))


@dataclass(frozen=True)
class CodecConfig:
    """The vocoder: code books, and a HiFi-GAN generator that turns codec tokens into sound."""

    n_codes: int
    global_tokens: tuple  # the default speaker: one code for each global code book
    upsample_rates: tuple
    upsample_kernel_sizes: tuple
    upsample_initial_channel: int
    resblock_kernel_sizes: tuple
    resblock_dilation_sizes: tuple
    sampling_rate: int = 24000  # Hz

    def __post_init__(self):
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels):
            raise ValueError(f"a codec needs one kernel for each rate, got {len(kernels)} and {len(rates)}")
        for rate, kernel in zip(rates, kernels):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"upsample kernel {kernel} must be its rate {rate} plus an even number")

    @property
    def hop(self):
        """Number of samples that one codec token becomes. Example: rates (3, 5, 8, 5) give 600."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class VitaConfig:
    """The parts of a ``Vita`` model (None if the model does not have the part), and the options of its checkpoint."""

    decoder: DecoderConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    speech: SpeechConfig | None = None  # set by `Speech.from_pretrained`, from a folder of its own
    image_token_index: int = -200
    audio_token_index: int = -500
    bos_token_id: int | None = None
    eos_token_ids: tuple = ()
    pad_token_id: int | None = None
    tokenizer_padding_side: str = "right"
    tokenizer_model_max_length: int | None = None
    image_aspect_ratio: str = "square"
    max_tiles: int = 12
    template: str = "chatml"  # a key of vita_ref.prompt.TEMPLATES
    dtype: str = "float32"
    missing: dict = field(default_factory=dict)  # "vision" or "audio" -> why the part could not be read

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @staticmethod
    def preset(name):
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
