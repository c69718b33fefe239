"""The documented model at full size, on the meta device: the passes whose shapes `check.py` compares.

Tensors on the meta device have shapes and no values, so that eight billion weights take no memory and a pass takes no
time. What needs values (masks, positions) or a loop (generation) runs on the CPU with a narrow model. The
``documented`` preset has no speech, so a narrow model speaks with the small weights in `SPEECH`.

B batch, S positions, D width, H heads, K head size, T columns that a query sees; N sounds, U subsampling channels,
P encoder positions.

Test: ``pytest tests/tools/test_document_check.py``
"""

import copy
import math
import sys
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vita_ref import Vita, VitaConfig, splice
from vita_ref.cli.speak import speech_file
from vita_ref.decoder import apply_rope, eager_attention, fused_attention, rope_angles
from vita_ref.fbank import load_sound
from vita_ref.inputs import Batch
from vita_ref.masks import SEE_ALL
from vita_ref.speech import Speech
from vita_ref.voice.text import prepare_text

# From the document: (text tokens, images, sounds) of each prompt. No tokenizer is used.
FOUR = ((6, 1, 0), (5, 0, 0), (6, 0, 0), (6, 1, 1))  # lines 1038-1041
SEVEN = ((9, 1, 0), (10, 0, 0), (8, 0, 0), (15, 1, 1), (18, 2, 1), (0, 1, 1), (44, 1, 1))  # lines 1866-1872
ASK_TEXT, ASK_IMAGE, ASK_AUDIO = (8, 0, 0), (8, 1, 0), (9, 0, 1)  # lines 871, 926, 980
SOUND_FRAMES = 479  # the fewest that give the 60 positions of line 1982
SPEECH = Path(__file__).resolve().parents[2] / "tests/golden/tts"  # random weights in upstream's layout
SENTENCE, OTHER = "I see 3 stars.", "Four hearts."
NARROW = {"intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}


class Run:
    """What the modules give for the document's examples. Each pass is made once, when it is first needed."""

    def __init__(self, config):
        self.config, self.passes = config, {}
        with torch.device("meta"):
            self.vita = Vita(config).eval()
        self.decoder, self.width = self.vita.decoder, config.decoder.hidden_size
        self.attention, self.mlp = self.decoder.layers[0].self_attn, self.decoder.layers[0].mlp
        embeddings = self.vita.vision.embeddings
        self.patches = (embeddings.class_embedding.shape[1], embeddings.position_embedding.shape[1] - 1)
        edge = math.isqrt(self.patches[1]) * embeddings.patch_embedding.kernel_size[0]
        self.image_shape = (embeddings.patch_embedding.in_channels, edge, edge)

    # ---- prompts

    def ids(self, prompt):
        """Text ids, then placeholders. Only the number of ids matters here."""
        text, images, sounds = prompt
        placeholders = [self.config.image_token_index] * images + [self.config.audio_token_index] * sounds
        return torch.tensor([0] * text + placeholders)

    def arguments(self, prompts):
        """The arguments of `Vita.forward` for these prompts."""
        images, sounds = sum(p[1] for p in prompts), sum(p[2] for p in prompts)
        return {
            "input_ids": [self.ids(p) for p in prompts],
            "images": [torch.empty(self.image_shape, device="meta")] * images or None,
            "audios": {"audios": [self.sound] * sounds} if sounds else None,
        }

    def inputs(self, prompts):
        """What enters the decoder for these prompts: embeds, mask, positions, and the segments of each row."""
        if prompts not in self.passes:
            self.passes[prompts] = self.vita.inputs(Batch(**self.arguments(prompts)))
        return self.passes[prompts]

    def lengths(self, prompts):
        """The length of each row without its padding."""
        return [segments[-1][2] for segments in self.inputs(prompts).segments]

    def media_positions(self, prompts, row, kind):
        """The number of positions that the images or the sounds of one row take."""
        return sum(end - start for k, start, end in self.inputs(prompts).segments[row] if k == kind)

    def row(self, prompt):
        """The embeddings of one prompt, [S, D]."""
        return self.inputs((prompt,)).embeds[0]

    def embed(self, length):
        """The embeddings of so many text tokens, [1, S, D]."""
        return self.vita.embed(torch.zeros(1, length, dtype=torch.long, device="meta"))

    # ---- one pass

    @cached_property
    def four(self):
        """The pass over the document's batch of four."""
        x = self.inputs(FOUR)
        given = {"inputs_embeds": x.embeds, "attention_mask": x.mask, "position_ids": x.positions}
        return self.vita(**given, output_hidden_states=True, output_attentions=True)

    @cached_property
    def counted(self):
        """The splice of the four on the CPU, with rows of width 1: masks and positions have values here."""
        images = [torch.zeros(len(self.image_features[0]), 1)] * 2
        sounds = [torch.zeros(len(self.sound), 1)]
        tokens = {"image_token": self.config.image_token_index, "audio_token": self.config.audio_token_index}
        return splice([self.ids(p) for p in FOUR], lambda ids: torch.zeros(len(ids), 1), images, sounds, **tokens)

    @cached_property
    def text(self):
        """The pass over four rows of text as long as the batch, with labels."""
        ids = torch.zeros(self.inputs(FOUR).embeds.shape[:2], dtype=torch.long)  # [B, S]
        return self.vita(ids, labels=ids.to("meta"))

    @cached_property
    def image_features(self):
        """The projected features of four images."""
        return self.vita.encode_images(torch.empty(4, *self.image_shape, device="meta"))

    def encode_sounds(self, frames, count=1):
        """The audio encoder stage by stage: its checks read lengths, which have no values on the meta device."""
        if (frames, count) not in self.passes:
            encoder, bins = self.vita.audio, self.config.audio.num_mel_bins
            normal = encoder.normalise(torch.empty(count, frames, bins, device="meta"))
            x = encoder.subsample(normal)  # [N, P, C]
            lengths = torch.empty(count, device="meta")  # [N]
            self.passes[frames, count] = encoder.adapt(encoder.encode(x, lengths), lengths)
        return self.passes[frames, count]

    @cached_property
    def sound(self):
        """The features of the document's sound, [60, D]."""
        return self.encode_sounds(SOUND_FRAMES)[0]

    def frames_per_row(self):
        """The number of frames that give one more row, over a long sound."""
        longer = 2 * SOUND_FRAMES + 1
        return (longer - SOUND_FRAMES) // (self.encode_sounds(longer).shape[1] - len(self.sound))

    @cached_property
    def query(self):
        """The first layer's queries, [B, H, S, K]."""
        q = self.attention.q_proj(self.inputs(FOUR).embeds)  # [B, S, D]
        return q.unflatten(2, (-1, self.attention.head_dim)).transpose(1, 2)

    def rotated(self):
        """The queries after RoPE."""
        angles = rope_angles(self.inputs(FOUR).positions, self.attention.head_dim, self.config.decoder.rope_theta)
        return apply_rope(self.query, angles)

    def weighted(self):
        """The values of the first layer after attention."""
        return fused_attention(self.query, *self.four.cache[0], SEE_ALL)

    def attention_map(self, length):
        """The map of one layer for so many positions."""
        heads = torch.empty(1, self.config.decoder.num_attention_heads, length, self.attention.head_dim, device="meta")
        return eager_attention(heads, heads, heads, SEE_ALL)[1]

    def attention_row(self, prompt):
        """The last layer's attention weights of the first position after the text, [H, T]."""
        x, last = self.inputs((prompt,)), copy.copy(self.decoder)
        last._modules = self.decoder._modules | {"layers": self.decoder.layers[-1:]}  # the map's shape needs no other layer
        out = last(x.embeds, attention_mask=x.mask, position_ids=x.positions, output_attentions=True)
        return out.attentions[-1][0, :, prompt[0]]

    def generated_shape(self, prompts, new, include_prompt=True):
        """The shape that `generate` returns. It depends on lengths only, so a narrow model on the CPU generates."""
        decoder = self.narrow_decoder(4, vocabulary=8)
        vision = replace(self.config.vision, **NARROW, hidden_size=4)
        vita = Vita(replace(self.config, decoder=decoder, vision=vision, audio=None))
        arguments, sound = self.arguments(prompts), torch.zeros(len(self.sound), 4)
        ids = torch.stack(arguments["input_ids"]) if include_prompt else arguments["input_ids"]
        images = [torch.zeros(self.image_shape) for _ in arguments["images"] or ()] or None
        audios = {"audios": [sound for _ in arguments["audios"]["audios"]]} if arguments["audios"] else None
        options = {"max_new_tokens": new, "eos_token_id": (), "include_prompt": include_prompt}
        return vita.generate(ids, images=images, audios=audios, **options).shape

    def narrow_decoder(self, width, vocabulary):
        """The decoder's config with other sizes."""
        sizes = NARROW | {"hidden_size": width, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": vocabulary}
        return replace(self.config.decoder, **sizes)

    def exponent(self, size):
        """How ``size(length)`` grows: the power of the length."""
        return round(math.log2(size(2048) / size(1024)))

    def stack(self, *lengths):
        """Whether sounds of these lengths go into one tensor."""
        try:
            torch.stack([torch.empty(n, self.width, device="meta") for n in lengths])
        except RuntimeError:
            return "no stack"
        return "a stack"

    # ---- speech

    @cached_property
    def speaker(self):
        """A model as narrow as the small speech weights, whose tokens are letters."""
        speech = Speech.from_pretrained(SPEECH)
        decoder = self.narrow_decoder(speech.decoder.config.decoder.hidden_size, vocabulary=128)
        vita = Vita(replace(self.config, decoder=decoder, vision=None, audio=None))
        vita.tokenizer, vita.speech = SimpleNamespace(encode=lambda text: list(text.encode())), speech
        for weight in vita.decoder.parameters():
            weight.data.normal_(generator=torch.Generator().manual_seed(0))
        return vita.eval()

    def speak(self, text=SENTENCE, **options):
        """The results of the document's three stages of speech: letters as ids, codec tokens, a waveform."""
        vita, ids, codes = self.speaker, [], []
        hooks = [
            vita.decoder.embed_tokens.register_forward_hook(lambda module, args, rows: ids.append(args[0])),
            vita.speech.codec.register_forward_hook(lambda module, args, sound: codes.extend(args[0])),
        ]
        sound, _ = vita.speak(text, max_tokens=20, **options)
        for hook in hooks:
            hook.remove()
        return {"text": torch.cat(ids), "features": torch.cat(codes), "audio": sound}

    @cached_property
    def plain(self):
        """The stages for `SENTENCE` without options."""
        return self.speak()

    def waveforms(self, tokens):
        """The sound of four rows of so many codec tokens."""
        return self.speaker.speech.codec(torch.zeros(4, tokens, dtype=torch.long))

    def saved(self, name):
        """What the command line writes with --speak and this file name, or without --speak."""
        stream = partial(self.speaker.speak_stream, max_tokens=20)
        short = SimpleNamespace(speech=self.speaker.speech, speak_stream=stream)
        with TemporaryDirectory() as folder:
            path = Path(folder) / name if name else None
            with speech_file(short, path, 1.0) as say:
                if say:
                    say(SENTENCE)
            if not any(Path(folder).iterdir()):
                return "nothing"
            sound, _ = load_sound(path)
            return "audio" if sound[0].allclose(self.plain["audio"], atol=2**-15) else "something else"

    def first_changed_stage(self, **option):
        """The first stage whose result an option changes."""
        other = self.speak(**option)
        return next(stage for stage in other if not other[stage].equal(self.plain[stage]))

    def speech_source(self):
        """What changes the sound: another text, other weights in the decoder's layers."""
        plain, text = self.plain["audio"], self.speak(OTHER)["audio"]
        for weight in self.speaker.decoder.layers.parameters():
            weight.data.neg_()
        layers = self.speak()["audio"]
        for weight in self.speaker.decoder.layers.parameters():
            weight.data.neg_()
        changed = {"text": text, "decoder layers": layers}
        return " and ".join(name for name, sound in changed.items() if not sound.equal(plain))

    def spoken_text(self):
        """Whether the text is spoken as it is or processed."""
        spoken = bytes(self.plain["text"].tolist()).decode()
        return {SENTENCE: "text", prepare_text(SENTENCE): "processed text"}[spoken]

    def voice_argument(self):
        """What the option ``voice`` takes: a name, or the codes of which the codec's own voice is a list."""
        try:
            self.speak(voice="default")
        except (TypeError, ValueError):
            own = self.speaker.speech.codec.config.global_tokens
            return "codes" if self.speak(voice=list(own))["audio"].equal(self.plain["audio"]) else "neither"
        return "a name"

    def default_speed(self):
        """The speed that changes nothing."""
        [speed] = (s for s in (0.5, 1.0, 1.5, 2.0) if self.speak(speed=s)["audio"].equal(self.plain["audio"]))
        return speed

    def speed_meaning(self, *speeds):
        """Whether a speed divides the length of the sound."""
        length = len(self.plain["audio"])
        divides = all(len(self.speak(speed=s)["audio"]) == round(length / s) for s in speeds)
        return "a multiplier" if divides else "no multiplier"


def parameter_count(module):
    """The number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def decoder_sizes(preset):
    """Layers, width, heads, key/value heads and MLP width of a preset."""
    c = VitaConfig.preset(preset).decoder
    return c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size
