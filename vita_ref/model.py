"""Vita: vision tower, audio encoder, splice and decoder together, and the one loop that generates an answer.

    images, sounds -> features -> splice -> decoder -> logits -> next token -> decoder -> ...

`Vita.steps` is the loop. `generate`, `respond`, `stream`, conversations and the command line all call it.

B rows, S positions, D width, V vocabulary, N images or sounds, X, Y size, I, A positions of one, J frames, M mel bins,
W samples; n ids of a row, placeholders included.

Test: ``pytest tests/test_model.py``
"""

import contextlib
from dataclasses import replace

import torch
from torch import nn

from .answer import Control, drop_unknown_ids, run_answers
from .audio import AudioEncoder
from .checks.batch import check_cache
from .checks.media import check_pixels, check_sounds
from .checks.rows import finite_logits, new_token_room, prepare_rows
from .decoder import Decoder, next_token_loss
from .inputs import Batch, Step, VitaOutput, check_inputs, decoder_inputs, split_options
from .masks import last_hidden
from .prompt import TEMPLATES
from .request import (
    PreparedRequest,
    Request,
    as_request,
    check_length,
    collate,
    missing_reason,
    prepare_request,
)
from .sampling import Sampling, repetition_penalty, sample, seen_tokens
from .stream import Stream
from .vision import Projector, VisionTower

PROMPT_CHUNK = 512  # positions: the memory of a pass does not grow with the prompt, and its progress can be shown


class Vita(nn.Module):
    """The whole model. A part that the config leaves out is None."""

    def __init__(self, config, tokenizer=None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        width = config.decoder.hidden_size
        self.decoder = Decoder(config.decoder)
        v, self.vision = config.vision, VisionTower(config.vision) if config.vision else None
        self.projector = Projector(v.feature_size, width, v.projector_norm) if v else None
        self.audio = AudioEncoder(config.audio, width) if config.audio else None
        self.speech = None
        self.folder = self.speech_folder = None  # where loading found the weights
        self.generation_products = contextlib.nullcontext  # loading may choose faster products for generation
        self.prompt_chunk = PROMPT_CHUNK  # positions of a prompt that are read in one pass; None: all of them

    @classmethod
    def from_pretrained(cls, folder=None, dtype=None, device="cpu", quantize=None, **options):
        """Reads a checkpoint folder into a model in eval mode. `vita_ref.loading` describes the options.

        Raises: ValueError with the names of all missing, surplus and misshapen tensors.
        """
        from .loading import load_vita

        return load_vita(cls, folder, dtype, device, quantize, **options)

    def save_pretrained(self, folder):
        """Writes a folder of this project's own kind, tokenizer included. Raises: ValueError if it is not empty."""
        from .saving import save_vita

        save_vita(self, folder)

    # ---- images and sounds to features

    def encode_images(self, pixel_values, *, checked=False):
        """Shapes: [N, 3, Y, X] normalised pixels -> [N, I, D].

        Raises: ValueError if the checkpoint has no vision tower, or the pixels do not fit it.
        """
        if self.vision is None:
            raise ValueError(f"this checkpoint cannot take images: {missing_reason(self.config, 'vision')}")
        like = self.decoder.norm.weight
        if not checked:
            check_pixels(pixel_values, self.config.vision, "pixel_values", (4,), like=like)
        return self.projector(self.vision(pixel_values.to(like.device, like.dtype)))

    def encode_audios(self, fbank, lengths, *, checked=False):
        """Shapes: [N, J, M] filter banks, [N] frames -> embeds [N, A, D] and lengths [N] in positions.

        Raises: ValueError if the checkpoint has no audio encoder, or a sound is too short for it.
        """
        if self.audio is None:
            raise ValueError(f"this checkpoint cannot take sounds: {missing_reason(self.config, 'audio')}")
        like = self.decoder.norm.weight
        if not checked:
            check_sounds(fbank, lengths, like)
        return self.audio(fbank.to(like.device, like.dtype), lengths)

    # ---- one pass

    def inputs(self, batch, cache=None, finite=True, progress=None):
        """A `Batch` as inputs of the decoder, see `decoder_inputs`."""
        return decoder_inputs(self, batch, cache, finite, progress)

    def embed(self, ids):
        """Rows of the embedding table. Shapes: [...] long -> [..., D]. Raises: ValueError for an id beyond the table."""
        size = self.config.decoder.vocab_size
        if not ids.is_meta and ids.numel() and not (0 <= int(ids.min()) and int(ids.max()) < size):
            raise ValueError(f"token ids must be in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return self.decoder.embed_tokens(ids)

    def forward(self, input_ids=None, *, cache=None, output_hidden_states=False, output_attentions=False, **batch):
        """One pass over a batch. It continues from ``cache`` if one is given.

        The other arguments are the fields of `Batch`: images [N, 3, Y, X] or a list of [3, Y, X] or [N, 3, Y, X];
        audios a dict (see `inputs.audio_features`); attention_mask [B, S], bool or 0 and 1; position_ids [B, S] long; labels
        [B, S] long, of which the loss ignores those below zero; inputs_embeds [B, S, D]; sf_masks, a number for each
        image; shared_v_pid_stride, an int.

        Shapes: input_ids [B, n] long, or a list of [n_i].
        Raises: ValueError for shapes, numbers of media or combinations that do not match.
        """
        check_cache(cache, self.decoder)
        x = self.inputs(Batch(input_ids, **batch), cache)
        check_inputs(x, self.config.decoder.vocab_size)
        needs_grad = x.embeds.requires_grad or any(p.requires_grad for p in self.decoder.parameters())
        if cache is None and not (torch.is_grad_enabled() and needs_grad):
            cache = self.decoder.new_cache(len(x.embeds), None)
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        out = self.decoder(x.embeds, attention_mask=x.mask, position_ids=x.positions, cache=cache, **wanted)
        logits = self.decoder.lm_head(out.last_hidden_state)  # [B, S, V]
        new = None if x.mask is None else x.mask[:, -logits.shape[1] :]  # without the cached columns
        loss = None if x.labels is None else next_token_loss(logits, x.labels, new)
        return VitaOutput(logits, loss, cache, out.hidden_states, out.attentions, x.segments)

    # ---- generation

    def steps(self, x, options, errors=None, *, cache=None, progress=None):
        """The generation loop. Yields a `Step` for each new token until every row has ended.

        It goes on behind ``cache``, if one is given. The ids of rows that have ended are the padding id; whoever
        iterates may end a row by setting its ``ended``. ``errors`` gets the ValueErrors of rows that fail, by row.
        """
        b, s, _ = x.embeds.shape
        device, errors = x.embeds.device, {} if errors is None else errors
        room = new_token_room(x, options, self.config.decoder.max_position_embeddings, cache)
        if cache is None:
            cache = self.decoder.new_cache(b, s + max(room))
        cache.reserve(cache.length + s + max(room))
        generators = options.generators(b, device)
        stops = torch.tensor(self.eos_ids(options.eos_token_id), dtype=torch.long, device=device)
        padding = self.padding_id(options)
        penalised = options.repetition_penalty != 1.0
        if penalised:
            prompt = [()] * b if x.batch.input_ids is None else x.batch.input_ids
            seen = seen_tokens(prompt, x.batch.attention_mask, self.config.decoder.vocab_size, device)
        ended = torch.zeros(b, dtype=torch.bool, device=device)  # [B]
        room_left, hidden = torch.tensor(room, device=device), self.read(x, cache, progress)  # [B] and [B, D]
        for step in range(max(room)):
            with self.generation_products():
                logits = self.decoder.lm_head(hidden)  # [B, V]
            logits, failed = finite_logits(logits, ended, options, errors, self)  # [B, V] and [B]
            ended = ended | failed  # [B]
            scores = repetition_penalty(logits, seen, options.repetition_penalty) if penalised else logits  # [B, V]
            chosen = sample(scores, options, generators)  # [B]
            ids = chosen.masked_fill(ended, padding)  # [B]
            yield Step(ids, logits, ended)
            ended = ended | torch.isin(ids, stops) | (room_left <= step + 1)  # [B]
            if ended.all():
                return
            if penalised:
                seen[torch.arange(b, device=device), chosen] = True
            with self.generation_products():
                hidden = self.decoder(self.decoder.embed_tokens(chosen[:, None]), cache=cache).last_hidden_state[:, 0]  # [B, D]

    def read(self, x, cache, progress=None):
        """Writes a prompt to the cache, ``prompt_chunk`` positions at a time. Returns the hidden state of each row's end.

        ``progress`` is called with "prompt", the positions that are read, and all of them. Shapes: -> [B, D].
        """
        hidden, s = x.embeds[:, 0], x.embeds.shape[1]  # [B, D]
        for start in range(0, s, self.prompt_chunk or s):
            if progress is not None:
                progress("prompt", start, s)
            part = slice(start, start + (self.prompt_chunk or s))
            embeds, mask, positions = (None if t is None else t[:, part] for t in (x.embeds, x.mask, x.positions))
            with self.generation_products():
                out = self.decoder(embeds, attention_mask=mask, position_ids=positions, cache=cache)
            last = last_hidden(out.last_hidden_state, mask)  # [B, D]
            hidden = last if mask is None else last.where(mask.bool().any(1, True), hidden)  # [B, D]
        if progress is not None:
            progress("prompt", s, s)
        return hidden

    @torch.inference_mode()
    def generate(self, input_ids=None, *, max_new_tokens, stream=None, include_prompt=False, **options):
        """New token ids [B, new]; with ``errors="return"`` a list of rows [new], or the ValueErrors of those that failed.
        Rows that ended early are filled with ``pad_token_id``.

        Options are the fields of `Sampling` and of `Batch`. ``eos_token_id`` is an id, a list, ``()`` for none, or
        None for the checkpoint's. ``stream`` is called with each step's ids [B]. ``include_prompt`` puts input_ids in
        front. The repetition penalty applies to the tokens of input_ids too, but not to those behind inputs_embeds.

        Raises: ValueError for what `forward` refuses, options out of range, a prompt that leaves no room for the new
        tokens, and logits that are not finite (the message names the rows).
        """
        fields, options = split_options(options, Batch, Sampling)
        batch, sampling = Batch(input_ids, **fields), Sampling(max_new_tokens=max_new_tokens, **options).check()
        if include_prompt and not isinstance(input_ids, torch.Tensor):
            raise ValueError("include_prompt needs input_ids as one tensor [B, S]")
        if sampling.stops:
            raise ValueError("generate gives ids, which stop texts do not end: use respond or stream, or eos_token_id")
        with self.generation_products():
            x = self.inputs(batch, finite=sampling.errors == "raise")
        check_inputs(x)
        new, errors, control = [], {}, Control()
        control.start(sampling.max_seconds)
        for step in self.steps(x, sampling, errors):
            new.append(step.ids)
            if stream is not None:
                stream(step.ids)
            if control.reason:
                break
        new = torch.cat([input_ids] * bool(include_prompt) + [torch.stack(new, 1)], 1)
        return new if sampling.errors == "raise" else [errors.get(i, row) for i, row in enumerate(new)]

    def answer(self, prepared, options, control=None):
        """Answers prepared requests together: yields their `Answer` objects after every step, and once at the end.

        ``control`` ends it from another thread, and shows the progress (see `Control`).
        """
        control = Control() if control is None else control
        read = lambda: self.inputs(collate(prepared), progress=control.progress)
        return run_answers(self, read, len(prepared), options, control)

    def respond(self, text=None, images=(), audios=(), video=None, *, details=False, **options):
        """The answer to a question with images and sounds (see `Request`), as a string; with ``details`` as a `Result`.

        Options are the other fields of `Request`, and those of `Sampling`: by default greedy, with at most 256 new
        tokens. A state mark at the beginning is removed. With ``errors="return"`` a ValueError is returned if the question
        cannot be answered.
        Raises: ValueError for media that cannot be read, or that the checkpoint cannot take.
        """
        progress = {"progress": options.pop("progress")} if details and "progress" in options else {}
        request, sampling = split_options(options, Request, Sampling)
        if not details:
            return self.respond_batch([Request(text, images, audios, video, **request)], **sampling)[0]
        returned = ValueError if Sampling(**sampling).check().errors == "return" else ()
        try:
            return self.stream(text, images, audios, video, **options, **progress).finish()
        except returned as error:
            return error

    def stream(self, text=None, images=(), audios=(), video=None, *, progress=None, **options):
        """The answer to one question as a `Stream` of pieces, made while it is iterated. Options are as for `respond`.

        ``progress`` is called with what is read ("images", "sounds" or "prompt"), the positions done, and all of them.
        """
        request, options = split_options(options, Request, Sampling)
        options, control = Sampling(**options).check(), Control(progress)
        prepared = self.prepare(Request(text, images, audios, video, **request), options.max_new_tokens)
        return Stream(lambda options: self.answer([prepared], options, control), options, control)

    def chat(self, system=None, **options):
        """A `Conversation`, which remembers its turns. Options are as for `respond`."""
        from .chat import Conversation

        return Conversation(self, system, **options)

    def respond_batch(self, requests, **options):
        """The answers to several requests (`Request`, dicts of its fields, or prompts). They equal those of `respond`.

        Options are as for `respond`; those of `Request` hold for the requests that leave them out. With
        ``errors="return"`` a ValueError stands in the place of an answer that cannot be given.
        Raises: ValueError, which names the row.
        """
        common, options = split_options(options, Request, Sampling)
        options = Sampling(**options).check()
        new = options.max_new_tokens
        results = prepare_rows(requests, lambda each: self.prepare(as_request(each, common), new), options.errors)
        rows = [i for i, each in enumerate(results) if isinstance(each, PreparedRequest)]
        if rows and not options.greedy:  # a row draws the same whether others are refused or not
            generators = options.generators(len(results), self.decoder.norm.weight.device)
            options = replace(options, generator=[generators[i] for i in rows], seed=None)
        *_, answers = self.answer([results[i] for i in rows], options) if rows else [[]]
        for i, each in zip(rows, answers):
            results[i] = each.error or each.text.strip()
        return results

    def prepare(self, request, max_new_tokens=None):
        """A `Request` as a `PreparedRequest`. Raises: ValueError if it cannot be answered, with so many new tokens."""
        prepared = prepare_request(request, self.config, self.tokenizer)
        check_length(self.config, prepared, max_new_tokens)
        return prepared

    def text(self, ids, skip_special_tokens=True):
        """The text of a row of ids. Ids that are no tokens are left out."""
        return self.tokenizer.decode(drop_unknown_ids(ids, self.tokenizer), skip_special_tokens)

    @property
    def stop_ids(self):
        """The ids that end an answer: the checkpoint's, and the stop texts of its chat template."""
        stops = [self.tokenizer.id_of(text) for text in TEMPLATES[self.config.template].stop] if self.tokenizer else []
        return tuple(sorted({*self.config.eos_token_ids, *stops} - {None}))

    def eos_ids(self, eos_token_id):
        """``eos_token_id`` as a tuple of ids."""
        ids = self.config.eos_token_ids if eos_token_id is None else eos_token_id
        return tuple(map(int, ids)) if isinstance(ids, (list, tuple)) else (int(ids),)

    def padding_id(self, options):
        """The id that fills ended rows: that of the options, the checkpoint's, or the first that ends a row."""
        candidates = (options.pad_token_id, self.config.pad_token_id, *self.eos_ids(options.eos_token_id), 0)
        return next(i for i in candidates if i is not None)

    def look(self, text=None, images=(), audios=(), video=None, **options):
        """What an answer was made of, as arrays by name; ``.save("a.html")`` writes a page. See `vita_ref.analysis.look`."""
        from .analysis.look import look

        return look(self, text, images, audios, video, **options)

    # ---- speech

    def speak(self, text, **options):
        """The speech of a text: (waveform [W] float32, sample rate in Hz). Options as in `speak_stream`."""
        pieces = list(self.speak_stream(text, **options))
        return torch.cat(pieces) if pieces else torch.zeros(0), self.speech.sample_rate

    def speak_stream(self, text, *, voice=None, speed=1.0, **token_options):
        """The speech in pieces [W], sentence by sentence. ``text`` may be an iterator over its parts.

        ``voice`` is a list of the codec's global tokens (None: its default); ``speed``, 0.5 to 2, keeps the pitch; the
        other options are those of `Speech.stream`.
        Raises: ValueError if the folder has no speech weights, or an option is out of range.
        """
        from .voice.speak import speak_stream

        return speak_stream(self, text, voice, speed, token_options)
