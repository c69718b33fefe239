"""A learner's functions in the place of the model's own: "your splice, your cache, your attention: A large red circle ...".

Each function below puts the functions of one lesson where the model calls its own. `swapped` undoes all of it at its end.
A part is named in the sentence only if it was called while the model answered.

Test: ``pytest tests/tools/test_lessons_more.py``
"""

import contextlib
from functools import wraps
from types import SimpleNamespace
from unittest import mock

import torch

from tools.lessons.checks.c05 import Bridge
from vita_ref import decoder, image, inputs, model, vision


def norm(my):
    yield decoder.RMSNorm, "forward", lambda self, x: my.rms_norm(x, self.weight, self.eps)


def rotation(my):
    yield decoder, "rope_angles", lambda positions, size, theta, yarn=None: my.rope_angles(positions, size, theta)
    yield decoder, "apply_rope", lambda x, angles: my.rotate(x, *angles)


def attention(my):
    def forward(self, q, k, v, mask, need_weights=False):
        whole = mask.rows(0, q.shape[2])
        # the columns that the last query sees are the real ones; a padding column also sees itself, and no one else does
        real = torch.ones(len(q), k.shape[2]).bool() if whole is None else whole[:, 0, -1].expand(len(q), -1)
        return my.attention(q, k, v, my.visible(real, q.shape[2])), None

    yield decoder.AttentionCore, "forward", forward


def layer(my):
    def mlp(self, x):
        return my.swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)

    def forward(self, x, angles, mask, cache=None, need_weights=False):
        attend = lambda y: self.self_attn(y, angles, mask, cache)[0]
        return my.layer(x, self.input_layernorm, attend, self.post_attention_layernorm, self.mlp), None

    yield decoder.MLP, "forward", mlp
    yield decoder.DecoderLayer, "forward", forward


def cache(my):
    def new_cache(self, batch_size, max_length=None):
        return Bridge(my.Cache(len(self.layers)), len(self.layers), batch_size)

    yield decoder.Decoder, "new_cache", new_cache


def sampling(my):
    def sample(logits, options, generators=None):
        temperature = 0 if options.greedy else options.temperature or 1.0
        probs = my.probabilities(logits.float(), temperature, options.top_k, options.top_p)
        draws = [torch.multinomial(row, 1, generator=g) for row, g in zip(probs, generators or [None] * len(probs))]
        return torch.cat(draws)

    yield model, "sample", sample
    yield model, "repetition_penalty", lambda logits, seen, penalty: my.penalise(logits.float(), seen, penalty)


def tiles(my):
    own = image.load_tiles

    def load_tiles(source, *, tile=448, max_tiles=12, mean=image.IMAGENET_MEAN, std=image.IMAGENET_STD, **options):
        import numpy as np

        if options.get("min_tiles", 1) != 1 or not options.get("thumbnail", True):  # not part of the lesson
            return own(source, tile=tile, max_tiles=max_tiles, mean=mean, std=std, **options)
        picture, mean, std = image.open_image(source), torch.tensor(mean), torch.tensor(std)
        columns, rows = my.grid(*picture.size, tile, max_tiles)
        pixels = lambda *size: my.normalise(torch.from_numpy(np.array(picture.resize(size))), mean, std)
        cut = my.cut(pixels(columns * tile, rows * tile), tile)
        return cut if len(cut) == 1 else torch.cat([cut, pixels(tile, tile)[None]])

    yield image, "load_tiles", load_tiles


def patches(my):
    def embed(self, pixels):
        p = self.patch_embedding
        rows, columns = (n // side for n, side in zip(pixels.shape[2:], p.kernel_size))
        return my.embed(pixels, p.weight, p.bias, self.class_embedding.flatten(), self.positions(rows, columns)[0])

    def attend(self, x):
        bias = self.qkv.weight.new_zeros(len(self.qkv.weight)) if self.qkv.bias is None else self.qkv.bias
        return my.vision_attention(x, self.qkv.weight, bias, self.proj.weight, self.proj.bias, self.num_heads)

    def block(self, x):
        return my.block(x, self.norm1, self.attn, self.ls1, self.norm2, self.mlp, self.ls2)

    yield vision.Embeddings, "forward", embed
    yield vision.VisionAttention, "forward", attend
    yield vision.VisionLayer, "forward", block


def projector(my):
    def encode_images(self, pixel_values, *, checked=False):
        tower, (first, _, last) = self.vision, self.projector
        x = tower.encoder(tower.embeddings(pixel_values.to(first.weight.dtype)))
        weights = first.weight, first.bias, last.weight, last.bias
        return my.image_rows(x, tower.config.shuffle, tower.config.feature_scale, *weights)

    yield model.Vita, "encode_images", encode_images


def splice(my):
    own = inputs.splice

    def spliced(input_ids, embed, image_features=(), audio_features=(), attention_mask=None, labels=None, **options):
        known = own(input_ids, embed, image_features, audio_features, attention_mask, labels, **options)  # for the segments
        if len(audio_features) or attention_mask is not None:
            return known
        side, token = options["padding_side"], options["image_token"]
        embeds, mask, positions = my.splice(list(input_ids), embed, list(image_features), token, side)
        return known._replace(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)

    yield inputs, "splice", spliced


PARTS = {
    "norm": (1, norm), "rotation": (2, rotation), "attention": (3, attention), "layer": (4, layer), "cache": (5, cache),
    "sampling": (6, sampling), "tiles": (7, tiles), "patches": (8, patches), "projector": (9, projector), "splice": (10, splice),
}  # fmt: skip


@contextlib.contextmanager
def swapped(functions):
    """Puts functions into the model. ``functions`` maps the number of a lesson to its functions by name.

    Yields the names of the parts that have been called so far, in the order of their first call.
    """
    called = {}
    with contextlib.ExitStack() as stack:
        for name, (number, places) in PARTS.items():
            if number not in functions:
                continue
            for owner, attribute, replacement in places(SimpleNamespace(**functions[number])):
                stack.enter_context(mock.patch.object(owner, attribute, counted(replacement, name, called)))
        yield called


def counted(function, name, called):
    """The function, which notes that it was called."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        called[name] = None
        return function(*args, **kwargs)

    return wrapper


def answer(functions, vita, picture, prompt=None):
    """The model's answer with a learner's parts, the names of those that were used, and how far the logits are off.

    The logits are those of the first token, compared with the model's own parts.
    """
    with torch.inference_mode():
        own = first_logits(vita, picture, prompt)
        with swapped(functions) as called:
            text = vita.respond(prompt, images=[picture], max_new_tokens=64)
            mine = first_logits(vita, picture, prompt)
    return text, list(called), float((own - mine).abs().max())


def first_logits(vita, picture, prompt):
    prepared = vita.prepare(model.Request(prompt, images=[picture]))
    return vita(prepared.ids[None], images=prepared.images).logits[0, -1]
