"""The passes behind `check_claims.py`: the documented model at full size, on the meta device.

Tensors there have shapes and no numbers, so that eight billion weights take no memory and a pass takes
no time. What needs values (masks, positions) or a loop (generation) runs on the CPU, made narrow; the
``documented`` preset has no speech, so that a narrow model speaks with the small weights of `SPEECH`.

Letters: B batch, S positions, D width, H heads, K head size; N sounds and U channels in the ear.

Test: ``pytest tests/test_check_claims.py``
"""

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
from vita_ref.decoder import apply_rope, eager_attention, fused_attention, rope_angles
from vita_ref.fbank import load_sound
from vita_ref.generate import speaking
from vita_ref.masks import SEE_ALL
from vita_ref.speech import Speech
from vita_ref.voice.text import prepare_text

# Taken as given from the document: (text tokens, images, sounds) of each prompt, and how many positions
# a sound takes. No tokenizer is asked.
FOUR = ((6, 1, 0), (5, 0, 0), (6, 0, 0), (6, 1, 1))  # lines 1038-1041
SEVEN = ((9, 1, 0), (10, 0, 0), (8, 0, 0), (15, 1, 1), (18, 2, 1), (0, 1, 1), (44, 1, 1))  # lines 1866-1872
ASK_TEXT, ASK_IMAGE, ASK_AUDIO = (8, 0, 0), (8, 1, 0), (9, 0, 1)  # lines 871, 926, 980
SOUND_FRAMES = 479  # the fewest that give the 60 positions of line 1982
SPEECH = Path(__file__).resolve().parents[2] / "tests/golden/tts"  # made with upstream's code, in its layout
SENTENCE, OTHER = "I see 3 stars.", "Four hearts."
NARROW = {"intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}


class Run:
    """What the modules give for the document's examples; each pass is made once, when first asked for."""

    def __init__(self, config):
        self.config, self.made = config, {}
        with torch.device("meta"):
            self.vita = Vita(config).eval()
        self.decoder, self.width = self.vita.decoder, config.decoder.hidden_size
        self.attention, self.mlp = self.decoder.layers[0].self_attn, self.decoder.layers[0].mlp
        eye = self.vita.vision.embeddings
        self.patches = (eye.class_embedding.shape[1], eye.position_embedding.shape[1] - 1)
        side = math.isqrt(self.patches[1]) * eye.patch_embedding.kernel_size[0]
        self.picture = (eye.patch_embedding.in_channels, side, side)

    def ids(self, prompt):
        """Text, then placeholders: of a prompt's ids only the number counts here."""
        text, images, sounds = prompt
        placeholders = [self.config.image_token_index] * images + [self.config.audio_token_index] * sounds
        return torch.tensor([0] * text + placeholders)

    def given(self, prompts):
        """The arguments that `Vita` takes for these prompts."""
        images, sounds = sum(p[1] for p in prompts), sum(p[2] for p in prompts)
        return {
            "input_ids": [self.ids(p) for p in prompts],
            "images": [torch.empty(self.picture, device="meta")] * images or None,
            "audios": {"audios": [self.sound] * sounds} if sounds else None,
        }

    def inputs(self, prompts):
        """The prompts as the decoder takes them, spliced and padded."""
        if prompts not in self.made:
            self.made[prompts] = self.vita.inputs(**self.given(prompts))
        return self.made[prompts]

    def lengths(self, prompts):
        return [segments[-1][2] for segments in self.inputs(prompts).segments]

    def taken(self, prompts, row, kind):
        """How many positions the images or the sounds of one row take."""
        return sum(end - start for k, start, end in self.inputs(prompts).segments[row] if k == kind)

    def row(self, prompt):
        return self.inputs((prompt,)).embeds[0]

    @cached_property
    def four(self):
        return self.vita(**self.given(FOUR), output_hidden_states=True, output_attentions=True)

    @cached_property
    def counted(self):
        """The splice of the four on the CPU with rows one number wide: masks and positions have values here."""
        images, sounds = [torch.zeros(len(self.seen[0]), 1)] * 2, [torch.zeros(len(self.sound), 1)]
        tokens = {"image_token": self.config.image_token_index, "audio_token": self.config.audio_token_index}
        return splice([self.ids(p) for p in FOUR], lambda ids: torch.zeros(len(ids), 1), images, sounds, **tokens)

    @cached_property
    def text(self):
        """Four rows of ids, as long as the batch, with labels."""
        ids = torch.zeros(self.inputs(FOUR).mask.shape, dtype=torch.long)  # [B, S]
        return self.vita(ids, labels=ids.to("meta"))

    @cached_property
    def seen(self):
        """What the eye gives for a batch of four pictures."""
        return self.vita.encode_images(torch.empty(4, *self.picture, device="meta"))

    def hear(self, frames, count=1):
        """The ear by its stages: its checks read lengths, which have no values on the meta device."""
        ear, bins = self.vita.audio, self.config.audio.num_mel_bins
        x = ear.subsample(ear.normalise(torch.empty(count, frames, bins, device="meta")))  # [N, S, U]
        lengths = torch.empty(count, device="meta")  # [N]
        return ear.adapt(ear.encode(x, lengths), lengths)

    @cached_property
    def sound(self):
        return self.hear(SOUND_FRAMES)[0]

    def frames_per_row(self):
        """By how much longer a sound must be for one more row, over a long way."""
        longer = 2 * SOUND_FRAMES + 1
        return (longer - SOUND_FRAMES) // (self.hear(longer).shape[1] - len(self.sound))

    @cached_property
    def query(self):
        """The first layer's queries, [B, H, S, K]."""
        q = self.attention.q_proj(self.inputs(FOUR).embeds)  # [B, S, D]
        return q.unflatten(2, (-1, self.attention.head_dim)).transpose(1, 2)

    def rotated(self):
        angles = rope_angles(self.inputs(FOUR).positions, self.attention.head_dim, self.config.decoder.rope_theta)
        return apply_rope(self.query, angles)

    def weighted(self):
        return fused_attention(self.query, *self.four.cache[0], SEE_ALL)

    def looks(self, prompt):
        """Where the last layer's heads look from the first position behind the text: [H, S]."""
        return self.vita(**self.given([prompt]), output_attentions=True).attentions[-1][0, :, prompt[0]]

    def written(self, prompts, new, include_prompt=True):
        """The shape of what `generate` gives. It depends on lengths alone, so a narrow model writes, on the CPU."""
        decoder = self.narrow_decoder(4, vocabulary=8)
        vision = replace(self.config.vision, **NARROW, hidden_size=4)
        vita = Vita(replace(self.config, decoder=decoder, vision=vision, audio=None))
        given, sound = self.given(prompts), torch.zeros(len(self.sound), 4)
        images = [torch.zeros(self.picture) for _ in given["images"] or ()] or None
        audios = {"audios": [sound for _ in given["audios"]["audios"]]} if given["audios"] else None
        ids = torch.stack(given["input_ids"]) if include_prompt else given["input_ids"]
        return vita.generate(
            ids, images=images, audios=audios, max_new_tokens=new, eos_token_id=(), include_prompt=include_prompt
        ).shape

    def narrow_decoder(self, width, vocabulary):
        sizes = NARROW | {"hidden_size": width, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": vocabulary}
        return replace(self.config.decoder, **sizes)

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

    def say(self, text=SENTENCE, **options):
        """What the document's three stages of speech give: letters as ids, codec tokens, a waveform."""
        vita, ids, codes = self.speaker, [], []
        hooks = [
            vita.decoder.embed_tokens.register_forward_hook(lambda module, given, rows: ids.append(given[0])),
            vita.speech.codec.register_forward_hook(lambda module, given, sound: codes.extend(given[0])),
        ]
        sound, _ = vita.speak(text, max_tokens=20, **options)
        for hook in hooks:
            hook.remove()
        return {"text": torch.cat(ids), "features": torch.cat(codes), "audio": sound}

    @cached_property
    def plain(self):
        return self.say()

    def sounded(self, tokens):
        """The sound of four rows of so many codec tokens."""
        return self.speaker.speech.codec(torch.zeros(4, tokens, dtype=torch.long))

    def saved(self, name):
        """What the command line leaves in a folder, its --speak being this name there or not given."""
        stream = partial(self.speaker.speak_stream, max_tokens=20)
        short = SimpleNamespace(speech=self.speaker.speech, speak_stream=stream)
        with TemporaryDirectory() as folder:
            path = Path(folder) / name if name else None
            with speaking(short, SimpleNamespace(speak=path, speed=1.0)) as say:
                if say:
                    say(SENTENCE)
            if not any(Path(folder).iterdir()):
                return "nothing"
            sound, _ = load_sound(path)
            return "audio" if sound[0].allclose(self.plain["audio"], atol=2**-15) else "something else"

    def enters(self, **option):
        """The first stage that gives something else because of an option."""
        other = self.say(**option)
        return next(stage for stage in other if not other[stage].equal(self.plain[stage]))

    def spoken_from(self):
        """What alters the sound: other words, other weights in the decoder's layers."""
        plain, words = self.plain["audio"], self.say(OTHER)["audio"]
        for weight in self.speaker.decoder.layers.parameters():
            weight.data.neg_()
        layers = self.say()["audio"]
        for weight in self.speaker.decoder.layers.parameters():
            weight.data.neg_()
        altered = {"text": words, "decoder layers": layers}
        return " and ".join(name for name, sound in altered.items() if not sound.equal(plain))

    def read_aloud(self):
        """Whether the text is said as it came or prepared."""
        said = bytes(self.plain["text"].tolist()).decode()
        return {SENTENCE: "text", prepare_text(SENTENCE): "processed text"}[said]

    def voice(self):
        """What the codec takes for a voice: a name, or the codes that its own voice is a list of."""
        try:
            self.say(voice="default")
        except (TypeError, ValueError):
            own = self.speaker.speech.codec.config.global_tokens
            return "codes" if self.say(voice=list(own))["audio"].equal(self.plain["audio"]) else "neither"
        return "a name"

    def usual_speed(self):
        """The speed that makes no difference."""
        [speed] = (s for s in (0.5, 1.0, 1.5, 2.0) if self.say(speed=s)["audio"].equal(self.plain["audio"]))
        return speed

    def means(self, *speeds):
        """Whether a speed divides the length of the sound."""
        length = len(self.plain["audio"])
        divided = all(len(self.say(speed=s)["audio"]) == round(length / s) for s in speeds)
        return "a multiplier" if divided else "no multiplier"

    def embed(self, length):
        return self.vita.embed(torch.zeros(1, length, dtype=torch.long, device="meta"))

    def power(self, size):
        """How ``size(length)`` grows: with which power of the length."""
        return round(math.log2(size(2048) / size(1024)))

    def map(self, length):
        heads = torch.empty(1, self.config.decoder.num_attention_heads, length, self.attention.head_dim, device="meta")
        return eager_attention(heads, heads, heads, SEE_ALL)[1]

    def stack(self, *lengths):
        """Whether sounds of these lengths go into one tensor."""
        try:
            torch.stack([torch.empty(n, self.width, device="meta") for n in lengths])
        except RuntimeError:
            return "no stack"
        return "a stack"


def count(module):
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def sizes(preset):
    """Layers, width, heads, key/value heads and MLP width of a known decoder."""
    c = VitaConfig.preset(preset).decoder
    return c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.intermediate_size
