"""Vita: the eye, the ear, the splice and the decoder wired together, and the loop that writes an answer.

    images, sounds -> features -> splice -> decoder -> logits -> next token -> decoder -> ...

Test: ``pytest tests/test_model.py``
"""

import contextlib
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from . import sampling
from .audio import AudioEncoder, audio_token_count
from .cache import KVCache
from .config import VitaConfig
from .decoder import Decoder, next_token_loss
from .files import checkpoint
from .files.tokenizer import load_tokenizer
from .masks import new_columns
from .prompt import TEMPLATES, split_state
from .request import Request, batch, fit, lack, prepare
from .speech import Speech
from .splice import splice
from .video import slow_fast
from .vision import Projector, VisionTower
from .voice import text as spoken
from .voice.vocoder import stretch

# where a checkpoint keeps each part
TABLE = {
    "decoder.": "model.",
    "decoder.lm_head.": "lm_head.",
    "vision.": "model.vision_tower.vision_tower.",
    "projector.": "model.mm_projector.",
    "audio.": "model.audio_encoder.",
}
SPEECH_FOLDERS = ("vita_tts_ckpt", "speech")  # in a checkpoint folder or beside it
PART_PREFIXES = {"vision": ("model.vision_tower.", "model.mm_projector."), "audio": ("model.audio_encoder.",)}


class VitaOutput(NamedTuple):
    """Logits [B, S, V], the loss or None, the cache to go on with, and what else was asked for.

    ``segments`` says where text, images and sounds stand in a spliced row (None where nothing was
    spliced); ``cache`` is None while gradients are recorded.
    """

    logits: torch.Tensor
    loss: torch.Tensor | None
    cache: KVCache | None
    hidden_states: tuple | None
    attentions: tuple | None
    segments: list | None


class Inputs(NamedTuple):
    """A batch as the decoder takes it."""

    embeds: torch.Tensor
    mask: torch.Tensor | None
    positions: torch.Tensor | None
    labels: torch.Tensor | None
    segments: list | None


class Vita(nn.Module):
    """The whole model; a part that its config leaves out is None."""

    def __init__(self, config, tokenizer=None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        width = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder)
        self.vision = VisionTower(config.vision) if config.vision else None
        self.projector = Projector(config.vision.feature_size, width) if config.vision else None
        self.audio = AudioEncoder(config.audio, width) if config.audio else None
        self.speech = None
        self.generation_products = contextlib.nullcontext  # loading may choose faster products for generation

    @classmethod
    def from_pretrained(
        cls,
        folder,
        dtype=None,
        device="cpu",
        quantize=None,
        *,
        vision_dir=None,
        audio_dir=None,
        speech_dir=None,
        split=False,
        pack=False,
        kernels="auto",
        mmap=True,
        progress=None,
    ):
        """Reads a checkpoint folder (see `VitaConfig.from_folder`) into a model in eval mode.

        ``dtype`` is a torch dtype, None the config's; ``quantize="int8"`` rounds the decoder's
        matrices as they arrive; ``vision_dir`` and ``audio_dir`` say where a VITA-1.5 folder's towers
        have their configs, ``speech_dir`` where ``decoder/`` and ``codec/`` lie (else a folder
        ``vita_tts_ckpt`` or ``speech`` is looked for); ``split`` reads this process's part of the decoder
        alone, one of torch.distributed's (see `parallel`); ``pack`` rearranges its matrices for several
        rows at a time (see `linear.pack`); ``mmap`` leaves weights whose numbers need no change in the file,
        which must not be written to meanwhile (see `checkpoint.load`); ``progress(done, total)`` counts tensors.
        Raises: ValueError for whatever does not fit, with names.
        """
        from .scale import install

        config = VitaConfig.from_folder(folder, vision_dir=vision_dir, audio_dir=audio_dir)
        files = checkpoint.locate(folder)
        if config.template == "vita":
            config = replace(config, decoder=resized(config.decoder, files))
        with torch.device("meta"):
            vita = cls(config, load_tokenizer(folder))
        absent = [p for part in config.missing for p in PART_PREFIXES[part]]
        dtype = dtype if dtype is not None else getattr(torch, config.dtype)
        options = {"dtype": dtype, "device": device, "ignored": absent, "progress": progress}
        options |= {"mmap": mmap and torch.device(device).type == "cpu"}
        options |= install(vita, kernels=kernels, quantize=quantize, pack=pack, split=split)
        checkpoint.load(vita, TABLE, files, **options)
        if speech_dir := speech_folder(Path(folder), speech_dir):
            vita.speech = Speech.from_pretrained(speech_dir, device=device)
            vita.config = replace(vita.config, speech=vita.speech.decoder.config)
        return vita.eval()

    # ---- media to features

    def encode_images(self, pixel_values):
        """Shapes: [N, 3, height, width] normalised pixels -> [N, V, D].

        Raises: ValueError where the checkpoint has no eye, or the pixels do not fit it.
        """
        if self.vision is None:
            raise ValueError(f"this checkpoint cannot take pictures: {lack(self.config, 'vision')}")
        like = self.decoder.norm.weight
        return self.projector(self.vision(pixel_values.to(like.device, like.dtype)))

    def encode_audios(self, fbank, lengths):
        """Shapes: [N, T, M] filter banks, [N] frames -> embeds [N, T', D] and lengths [N] in positions.

        Raises: ValueError where the checkpoint has no ear, or a sound is too short for it.
        """
        if self.audio is None:
            raise ValueError(f"this checkpoint cannot take sounds: {lack(self.config, 'audio')}")
        like = self.decoder.norm.weight
        return self.audio(fbank.to(like.device, like.dtype), lengths)

    def image_features(self, images, sf_masks=None):
        """Features [V_i, D] of each placeholder: a tensor's rows, or a list's entries with all their tiles."""
        if images is None:
            return []
        tiles = [x if x.dim() == 4 else x[None] for x in images]
        if len({t.shape[1:] for t in tiles}) == 1:
            seen = self.encode_images(torch.cat(tiles)).split([len(t) for t in tiles])
        else:
            seen = [self.encode_images(t) for t in tiles]
        features = [x.flatten(0, 1) for x in seen]  # each [V_i, D]
        if sf_masks is None:
            return features
        if len(sf_masks) != len(features):
            raise ValueError(f"sf_masks has {len(sf_masks)} entries for {len(features)} pictures")
        if any(mask > 0 and len(t) > 1 for mask, t in zip(sf_masks, tiles)):
            raise ValueError("a frame that sf_masks marks must be one tile: give each frame as an entry of its own")
        return slow_fast(features, sf_masks)

    def audio_features(self, audios):
        """Features [A_i, D] of each sound, from filter banks or from ready embeddings.

        ``audios`` is a dict of ``audios`` [N, T, M] (banks), [N, A, D] (ready) or a list of such rows; ``lengths``
        [N], how much of each row is real; ``lengths_for_llm`` [N], how many of its positions to keep; ``kind``,
        "fbank" or "embeds" where the width does not tell; ``state_labels`` [N], for `splice`.
        Raises: ValueError for a dict that does not fit: its lengths, its kind, or the rows' width.
        """
        if audios is None:
            return []
        if not isinstance(audios, dict) or "audios" not in audios:
            raise ValueError('audios must be a dict with the sounds under "audios", and perhaps their "lengths"')
        rows, kind = list(audios["audios"]), audios.get("kind")
        lengths, kept = (counts(audios.get(name), name, len(rows)) for name in ("lengths", "lengths_for_llm"))
        if kind not in (None, "embeds", "fbank"):
            raise ValueError(f"audios' kind must be 'embeds', 'fbank' or None, got {kind!r}")
        width, ear = self.config.decoder.hidden_size, self.config.audio
        bins = ear.num_mel_bins if ear else None
        rows = [row[:n] for row, n in zip(rows, lengths)]
        ready = [kind == "embeds" or kind is None and row.shape[-1] == width != bins for row in rows]
        if wrong := [list(row.shape) for row, done in zip(rows, ready) if done and row.shape[-1] != width]:
            raise ValueError(f"ready embeddings must be {width} wide, got {wrong[0]}")
        banks, heard, prompts = [row for row, done in zip(rows, ready) if not done], iter(()), 0
        if banks:
            batch = nn.utils.rnn.pad_sequence(banks, batch_first=True)  # [N, T, M]
            embeds = self.encode_audios(batch, [len(bank) for bank in banks]).embeds  # [N, A, D]
            prompts = ear.num_prompts
            heard = (e[: audio_token_count(len(bank)) + prompts] for e, bank in zip(embeds, banks))
        features = [row if done else next(heard) for row, done in zip(rows, ready)]
        # a number above what there is means all of it: upstream says 60 for 50
        return [f[: None if n is None else n + prompts * (not done)] for f, n, done in zip(features, kept, ready)]

    # ---- one pass

    def inputs(
        self,
        input_ids=None,
        *,
        images=None,
        audios=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        inputs_embeds=None,
        cache=None,
        sf_masks=None,
        shared_v_pid_stride=None,
    ):
        """Ids and media, or ready embeddings, as what the decoder takes. Arguments as in `forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        for name, given in (("input_ids", input_ids), ("attention_mask", attention_mask), ("labels", labels)):
            if isinstance(given, torch.Tensor) and given.dim() != 2:
                raise ValueError(f"{name} must be [B, S], got {list(given.shape)}")
        if inputs_embeds is not None:
            if images is not None or audios is not None:
                raise ValueError("images and audios need input_ids with their placeholders, not inputs_embeds")
            if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != self.config.decoder.hidden_size:
                expected = f"[B, S, {self.config.decoder.hidden_size}]"
                raise ValueError(f"inputs_embeds must be {expected}, got {list(inputs_embeds.shape)}")
            return Inputs(inputs_embeds, attention_mask, position_ids, labels, None)
        c = self.config
        if images is None and audios is None and not isinstance(input_ids, list):
            if attention_mask is not None and attention_mask.device == input_ids.device and not input_ids.is_meta:
                real = new_columns(attention_mask, *input_ids.shape, cache)
                input_ids = input_ids if real is None else input_ids.where(real, 0)  # padding may be any id
            for kind, token in (("image", c.image_token_index), ("audio", c.audio_token_index)):
                if not input_ids.is_meta and (count := int((input_ids == token).sum())):
                    raise ValueError(f"the prompt has {count} {kind} placeholders, but 0 {kind}s were given")
            return Inputs(self.embed(input_ids), attention_mask, position_ids, labels, None)
        if position_ids is not None:
            raise ValueError("position_ids of a spliced prompt are made by the splice and cannot be given")
        if cache is not None and attention_mask is not None and isinstance(input_ids, torch.Tensor):
            attention_mask = attention_mask[:, -input_ids.shape[1] :]  # [B, I]: it may cover the cached columns too
        spliced = splice(
            input_ids,
            self.embed,
            self.image_features(images, sf_masks),
            self.audio_features(audios),
            attention_mask,
            labels,
            image_token=c.image_token_index,
            audio_token=c.audio_token_index,
            padding_side=c.tokenizer_padding_side,
            max_length=c.tokenizer_model_max_length,
            shared_v_pid_stride=shared_v_pid_stride,
            state_labels=None if audios is None else audios.get("state_labels"),
        )
        positions = spliced.position_ids  # [B, S]
        if cache is not None:
            positions = positions + cache.next_positions[:, None] * spliced.attention_mask  # [B, S]
        return Inputs(spliced.inputs_embeds, spliced.attention_mask, positions, spliced.labels, spliced.segments)

    def embed(self, ids):
        """Rows of the embedding table. Shapes: [...] long -> [..., D]. Raises: ValueError for an id that it lacks."""
        size = self.config.decoder.vocab_size
        if not ids.is_meta and ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < size):
            raise ValueError(f"token ids must lie in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return self.decoder.embed_tokens(ids)

    def forward(
        self,
        input_ids=None,
        *,
        images=None,
        audios=None,
        attention_mask=None,
        position_ids=None,
        labels=None,
        inputs_embeds=None,
        cache=None,
        sf_masks=None,
        shared_v_pid_stride=None,
        output_hidden_states=False,
        output_attentions=False,
    ):
        """One pass over a batch, going on from ``cache`` if one is given.

        Shapes: input_ids [B, S] long or a list of [S_i]; images [N, 3, H, W] or a list of [3, H, W]
        or [F, 3, H, W]; audios a dict (see `audio_features`); attention_mask [B, S]; position_ids [B, S];
        labels [B, S] long, those below zero not counted; inputs_embeds [B, S, D]. What is asked for
        besides: hidden_states, L + 1 of [B, S, D], the last behind the norm; attentions, L of [B, H, S, T].
        Raises: ValueError for shapes, numbers of media or combinations that do not fit.
        """
        x = self.inputs(
            input_ids,
            images=images,
            audios=audios,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            inputs_embeds=inputs_embeds,
            cache=cache,
            sf_masks=sf_masks,
            shared_v_pid_stride=shared_v_pid_stride,
        )
        if x.embeds.shape[1] == 0:
            raise ValueError("the prompt is empty: there is nothing to read")
        if x.labels is not None and (isinstance(x.labels, list) or x.labels.shape != x.embeds.shape[:2]):
            got = "a list" if isinstance(x.labels, list) else list(x.labels.shape)
            raise ValueError(f"labels must be {list(x.embeds.shape[:2])} as the prompt is, got {got}")
        learning = x.embeds.requires_grad or any(p.requires_grad for p in self.decoder.parameters())
        if cache is None and not (torch.is_grad_enabled() and learning):
            cache = self.decoder.new_cache(len(x.embeds), None)
        out = self.decoder(
            x.embeds,
            attention_mask=x.mask,
            position_ids=x.positions,
            cache=cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.decoder.lm_head(out.last_hidden_state)  # [B, S, V]
        new = None if x.mask is None else x.mask[:, -logits.shape[1] :]  # without the cached columns
        loss = None if x.labels is None else next_token_loss(logits, x.labels, new)
        return VitaOutput(logits, loss, cache, out.hidden_states, out.attentions, x.segments)

    # ---- answers

    def steps(
        self,
        x,
        *,
        max_new_tokens,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        eos_token_ids=(),
        pad_token_id=0,
        generator=None,
        seen=None,
    ):
        """Writes on from `Inputs`: yields (ids [B], logits [B, V]) until every row has ended.

        Rows that ended get ``pad_token_id``; ``seen`` [B, V] bool are the tokens that the repetition
        penalty counts from the start (None: none).
        """
        b, s, _ = x.embeds.shape
        if seen is None:
            seen = x.embeds.new_zeros(b, self.config.decoder.vocab_size, dtype=torch.bool)  # [B, V]
        seen = seen.clone()  # [B, V]; the caller's stays
        options = sampling.Sampling(do_sample, temperature, top_p, top_k, repetition_penalty)
        generators = None if options.greedy else sampling.row_generators(generator, b, x.embeds.device)
        cache = self.decoder.new_cache(b, s + max_new_tokens)
        with self.generation_products():
            hidden = self.decoder(
                x.embeds, attention_mask=x.mask, position_ids=x.positions, cache=cache
            ).last_hidden_state  # [B, S, D]
        if x.mask is None:
            hidden = hidden[:, -1]  # [B, D]
        else:  # the last real column of each row, whichever side is padded
            columns = torch.arange(1, s + 1, device=hidden.device)  # [S]
            last = (x.mask.bool() * columns).argmax(1)  # [B]
            hidden = hidden[torch.arange(b, device=hidden.device), last]  # [B, D]
        ended = torch.zeros(b, dtype=torch.bool, device=hidden.device)  # [B]
        stops = torch.tensor(list(eos_token_ids), dtype=torch.long, device=hidden.device)
        for step in range(max_new_tokens):
            with self.generation_products():
                logits = self.decoder.lm_head(hidden)  # [B, V]
            scores = logits  # [B, V]
            if repetition_penalty != 1.0:
                scores = sampling.repetition_penalty(logits, seen, repetition_penalty)  # [B, V]
            chosen = sampling.sample(scores, options, generators)  # [B]
            ids = chosen.masked_fill(ended, pad_token_id)  # [B]
            yield ids, logits
            ended = ended | torch.isin(ids, stops)  # [B]
            if ended.all() or step + 1 == max_new_tokens:
                return
            if repetition_penalty != 1.0:
                seen[torch.arange(b, device=ids.device), chosen] = True
            embeds = self.decoder.embed_tokens(chosen[:, None])  # [B, 1, D]; padding may be any number
            with self.generation_products():
                hidden = self.decoder(embeds, cache=cache).last_hidden_state[:, -1]  # [B, D]

    @torch.inference_mode()
    def generate(
        self,
        input_ids=None,
        *,
        images=None,
        audios=None,
        sf_masks=None,
        shared_v_pid_stride=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        max_new_tokens,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        repetition_penalty=1.0,
        eos_token_id=None,
        pad_token_id=None,
        generator=None,
        stream=None,
        include_prompt=False,
    ):
        """New token ids [B, G]; rows that ended early are filled with ``pad_token_id``.

        ``eos_token_id`` is an id, a list, ``()`` for none, or None for the checkpoint's; ``stream`` is
        called with each step's ids [B]; ``include_prompt`` puts ``input_ids`` in front, their
        placeholders as they are. The repetition penalty counts the tokens of ``input_ids``, but cannot know
        those of ``inputs_embeds``. The other arguments are as in `forward`.
        Raises: ValueError for what `forward` refuses, and for options that are out of range.
        """
        sampling.Sampling(do_sample, temperature, top_p, top_k, repetition_penalty).check()
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be a whole number of at least 1, got {max_new_tokens!r}")
        if include_prompt and not isinstance(input_ids, torch.Tensor):
            raise ValueError("include_prompt needs input_ids as one tensor [B, S]")
        x = self.inputs(
            input_ids,
            images=images,
            audios=audios,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            sf_masks=sf_masks,
            shared_v_pid_stride=shared_v_pid_stride,
        )
        if x.embeds.shape[1] == 0 or x.mask is not None and not x.mask.any(1).all():
            raise ValueError("a prompt is empty: there is nothing to go on from")
        eos = self.ends(eos_token_id)
        if pad_token_id is None:
            pad_token_id = self.config.pad_token_id
        if pad_token_id is None:
            pad_token_id = eos[0] if eos else 0
        written = []
        steps = self.steps(
            x,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            eos_token_ids=eos,
            pad_token_id=pad_token_id,
            generator=generator,
            seen=self.seen(input_ids, attention_mask, x.embeds) if repetition_penalty != 1.0 else None,
        )
        for ids, _ in steps:
            written.append(ids)
            if stream is not None:
                stream(ids)
        new = torch.stack(written, 1)  # [B, G]
        return torch.cat([input_ids, new], 1) if include_prompt else new

    def seen(self, input_ids, attention_mask, embeds):
        """Which tokens stand in each prompt, [B, V] bool; placeholders and padding do not count."""
        seen = torch.zeros(len(embeds), self.config.decoder.vocab_size, dtype=torch.bool, device=embeds.device)
        for i, row in enumerate(input_ids if input_ids is not None else ()):
            row = row if attention_mask is None else row[attention_mask[i].bool()]
            seen[i, row[(row >= 0) & (row < seen.shape[1])]] = True
        return seen

    def respond(self, text=None, images=(), audios=(), video=None, **generate_options):
        """The answer to a question in words, with pictures and sounds as paths, PIL images or tensors.

        Options as in `generate`: greedy unless they say otherwise, of 256 new tokens at most. A state mark in
        front is cut off. Raises: ValueError for media that cannot be read or that the checkpoint cannot take.
        """
        return self.respond_batch([Request(text, list(images), list(audios), video)], **generate_options)[0]

    def respond_batch(self, requests, **generate_options):
        """The answers to several requests at once (`Request`, or dicts of its fields), each as `respond` gives it alone."""
        known = [f.name for f in fields(Request)]
        for r in requests:
            if not isinstance(r, Request) and not set(r) <= set(known):
                raise ValueError(f"a request has {', '.join(known)}, got {', '.join(map(str, r))}")
        requests = [r if isinstance(r, Request) else Request(**r) for r in requests]
        if not requests:
            return []
        ready = [prepare(r, self.config, self.tokenizer) for r in requests]
        for asked in ready:
            fit(self.config, asked)
        ends = self.ends(generate_options.get("eos_token_id", self.stop_ids))
        options = {"max_new_tokens": 256} | generate_options | {"eos_token_id": ends}
        texts = [self.text(until(row, ends)) for row in self.generate(**batch(ready), **options)]
        return [split_state(text, self.config.template)[1].strip() for text in texts]

    def readable(self, ids):
        """The ids that stand for text, as a list: a table may have more rows than there are tokens."""
        return [i for i in torch.as_tensor(ids).tolist() if i in self.tokenizer]

    def text(self, ids, skip_special_tokens=True):
        """What ids say."""
        return self.tokenizer.decode(self.readable(ids), skip_special_tokens)

    def speak(self, text, **options):
        """The sound of a text: (waveform [W] float32, samples a second). Options as in `speak_stream`."""
        pieces = list(self.speak_stream(text, **options))
        return torch.cat(pieces) if pieces else torch.zeros(0), self.speech.sample_rate

    def speak_stream(self, text, *, voice=None, speed=1.0, **token_options):
        """The same in pieces [W], sentence by sentence; ``text`` may be an iterator that is still being written.

        ``voice`` is a list of the codec's global tokens (None: its own), ``speed`` 0.5 to 2 keeps the
        pitch; the other options are those of `Speech.stream`.
        Raises: ValueError where the folder has no speech weights, or an option is out of range.
        """
        if self.speech is None:
            raise ValueError(
                "this checkpoint cannot speak: there is no folder with decoder/ and codec/ "
                f"named {' or '.join(SPEECH_FOLDERS)} in it or beside it (--speech-dir names another place)"
            )
        if not 0.5 <= speed <= 2.0:
            raise ValueError(f"speed must be between 0.5 and 2.0, got {speed}")
        return self.spoken_pieces([text] if isinstance(text, str) else text, voice, speed, token_options)

    def spoken_pieces(self, text, voice, speed, token_options):
        """The generator behind `speak_stream`."""
        for sentence in spoken.sentences(text):
            ids = self.tokenizer.encode(spoken.prepare_text(sentence))
            if ids:
                rows = self.embed(torch.tensor(ids, device=self.decoder.norm.weight.device))  # [S, D]
                for piece in self.speech.stream(rows.float(), voice=voice, **token_options):
                    yield stretch(piece, speed)

    @property
    def stop_ids(self):
        """The ids that end an answer: the checkpoint's, and the stop texts of its chat template."""
        stops = [self.tokenizer.id_of(text) for text in TEMPLATES[self.config.template].stop] if self.tokenizer else []
        return sorted({*self.config.eos_token_ids, *stops} - {None})

    def ends(self, eos_token_id):
        """What `generate` takes as ``eos_token_id``, as a tuple of ids."""
        eos = self.config.eos_token_ids if eos_token_id is None else eos_token_id
        return (eos,) if isinstance(eos, int) else tuple(eos)


def counts(given, name, n):
    """Lengths as a list of ``n`` ints, or of None where none are given."""
    if given is None:
        return [None] * n
    found = [int(x) for x in given]
    if len(found) != n or min(found, default=0) < 0:
        raise ValueError(f"{name} must have a number of 0 or more for each of {n} audios, got {found}")
    return found


def speech_folder(folder, given):
    """Where the speech weights lie, None where there are none."""
    if given is not None:
        return given
    places = [place / name for name in SPEECH_FOLDERS for place in (folder, folder.resolve().parent)]
    return next((p for p in places if (p / "decoder" / "model.json").is_file()), None)


def until(ids, ends):
    """A row of new ids [G] up to the first that ends it, as a list."""
    ids = ids.tolist()
    return ids[: next((i for i, token in enumerate(ids) if token in ends), None)]


def resized(decoder, files):
    """The decoder config with the vocabulary that the folder's embeddings and head have.

    Upstream's loader resizes both to the tokenizer, so a saved folder's config may say another number.
    """
    shapes = {}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in files:
            shapes[name] = checkpoint.headers(Path(files[name]))[name]
    rows = {shape[0] for shape in shapes.values()}
    return replace(decoder, vocab_size=rows.pop()) if len(rows) == 1 else decoder
