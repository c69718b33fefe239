"""The check of lesson 12, the loop: a learner's own decoder, cache and splice, with random weights and with the demo's."""

import functools
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from tools.lessons.check import Case, Lesson, Mistake, randn
from tools.lessons.checks import c01, c02, c03, c04, c05, c10
from tools.lessons.demo import demo, picture
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder

LENT = {}
for _lesson in (c01, c02, c03, c04, c05, c10):
    LENT |= _lesson.LESSON.reference


def decode(my, weights, config, x, positions, real, cache):
    """The package's decoder, on a cache that the caller holds."""
    decoder, s = decoder_of(weights, config), x.shape[1]
    bridge = c05.Bridge(cache, len(decoder.layers), len(x))
    bridge.columns = [real[:, : real.shape[1] - s]]
    return decoder(x, attention_mask=real[:, -s:], position_ids=positions, cache=bridge).last_hidden_state.detach()


def answer(my, weights, config, ids, features, placeholder, stop, limit):
    table = weights["model.embed_tokens.weight"]
    x, real, positions = c10.splice([ids], lambda i: table[i], features, placeholder, "right")
    cache, new = c05.Cache(config.num_hidden_layers), []
    while len(new) < limit:
        hidden = decode(my, weights, config, x, positions, real, cache)
        token = int((hidden[0, -1] @ weights["lm_head.weight"].T).argmax())
        if token in stop:
            break
        new.append(token)
        x, positions = table[[token]][None], positions[:, -1:] + 1
        real = torch.cat([real, torch.ones(1, 1).bool()], 1)
    return new


_decoders = {}


def decoder_of(weights, config):
    """The package's decoder with these weights, made once."""
    key = id(weights)
    if key not in _decoders:
        with torch.random.fork_rng(devices=[]):
            made = Decoder(DecoderConfig(**vars(config))).eval()
        state = {n.removeprefix("model."): t for n, t in weights.items()}
        made.load_state_dict(state)
        _decoders[key] = weights, made
    return _decoders[key][1]


@functools.cache
def tiny():
    """Random weights of two layers, under the names of a checkpoint, and their config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        decoder = Decoder(DecoderConfig(13, 12, 20, 2, 4, 2, 4, rope_theta=1e4))
    for i, p in enumerate(decoder.parameters()):
        p.data += randn(*p.shape, seed=i) * (0.3 if p.dim() == 1 else 0.6)
    return names(decoder), plain(decoder.config)


def names(decoder):
    """The weights of a decoder under the names of its checkpoint."""
    state = decoder.state_dict()
    state.setdefault("lm_head.weight", state["embed_tokens.weight"])
    return {name if name.startswith("lm_head") else f"model.{name}": t.detach() for name, t in state.items()}


def plain(config):
    return SimpleNamespace(**{f: getattr(config, f) for f in config.__dataclass_fields__})


@functools.cache
def demo_weights():
    vita = demo()
    return names(vita.decoder), plain(vita.config.decoder)


@functools.cache
def demo_prompt():
    """The ids of "Describe the image." with the demo's example, and its features."""
    vita, prepared = demo(), picture()
    with torch.inference_mode():
        return prepared.ids, [vita.encode_images(tiles).flatten(0, 1) for tiles in prepared.images]


def parts(my):
    """A learner's earlier functions, those of the package where there are none."""
    return SimpleNamespace(**(LENT | vars(getattr(my, "my", SimpleNamespace()))))


def hidden(my, chunks=(5,), real=None):
    weights, config = tiny()
    lent = parts(my)
    x, cache, out = randn(2, 5, 12), lent.Cache(2), []
    real = torch.ones(2, 5).bool() if real is None else real
    positions, start = (real.long().cumsum(1) - 1) * real, 0
    for n in chunks:
        part = slice(start, start + n)
        out.append(my.decode(lent, weights, config, x[:, part], positions[:, part], real[:, : start + n], cache))
        start += n
    return torch.cat(out, 1) * real[..., None], cache.length


def tiny_answer(my, stop=(), limit=6, pictures=True, ids=None):
    weights, config = tiny()
    if ids is not None:
        return list(my.answer(parts(my), weights, config, torch.tensor(ids), [], -200, stop, limit))
    ids, features = (torch.tensor([3, -200, 7, 1]), [randn(3, 12, seed=9)]) if pictures else (torch.tensor([3, 7, 1]), [])
    return list(my.answer(parts(my), weights, config, ids, features, -200, stop, limit))


def on_demo(my):
    """The answer about the JPEG, as text."""
    vita, (weights, config), (ids, features) = demo(), demo_weights(), demo_prompt()
    new = my.answer(parts(my), weights, config, ids.clone(), features, vita.config.image_token_index, vita.stop_ids, 40)
    return vita.text(new).strip()


def expected_text():
    vita, prepared = demo(), picture()
    with torch.inference_mode():
        ids = vita.generate(prepared.ids[None], images=prepared.images, max_new_tokens=40, eos_token_id=vita.stop_ids)[0]
    return vita.text([i for i in ids.tolist() if i not in vita.stop_ids]).strip()


def cases():
    padded = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    free = tiny_answer(SimpleNamespace(answer=answer))
    end = next(t for t in free[1:] if t != free[0])
    return [
        Case("two layers of random weights read five rows", "decode", hidden, None, 1e-4),
        Case("the same in chunks of 3, 1 and 1", "decode", lambda my: hidden(my, (3, 1, 1)), None, 1e-4),
        Case("with padding on the left", "decode", lambda my: hidden(my, (4, 1), padded), None, 1e-4),
        Case("six tokens of text", "answer", lambda my: tiny_answer(my, pictures=False)),
        Case("other texts", "answer", lambda my: [tiny_answer(my, ids=ids) for ids in ([2, 9, 5], [8, 1, 4, 12], [11, 6])]),
        Case("six tokens behind a picture", "answer", tiny_answer),
        Case("at most two tokens", "answer", lambda my: tiny_answer(my, limit=2)),
        Case("the end token ends the answer", "answer", lambda my: tiny_answer(my, stop=(end,)), free[: free.index(end)]),
        Case("the demo weights and the JPEG", "answer", on_demo, expected_text(), slow=True),
    ]  # fmt: skip


# ---- wrong versions


def decoded(my, weights, config, x, positions, real, cache, norm=True, bias=True, rotate=True, moves=True, store="turned"):
    """A decoder of plain steps, with one of them left out."""
    c, s = config, x.shape[1]
    cos, sin = c02.rope_angles(positions, c.head_dim, c.rope_theta)

    def attend(x, i, w):
        def project(name):
            out = F.linear(x, w(f"self_attn.{name}.weight"), w(f"self_attn.{name}.bias") if bias else None)
            return out.unflatten(2, (-1, c.head_dim)).transpose(1, 2)

        q, k, v = map(project, ("q_proj", "k_proj", "v_proj"))
        if rotate:
            q = c02.rotate(q, cos, sin)
            k = c02.rotate(k, cos, sin) if store == "turned" else k
        k, v = cache.write(i, k, v)
        out = c03.attention(q, k, v, c03.visible(real, s))
        return out.transpose(1, 2).flatten(2) @ w("self_attn.o_proj.weight").T

    for i in range(c.num_hidden_layers):
        w = lambda name, i=i: weights[f"model.layers.{i}.{name}"]
        norms = [lambda x, n=n, w=w: c01.rms_norm(x, w(f"{n}.weight"), c.rms_norm_eps) for n in ("input_layernorm", "post_attention_layernorm")]
        mlp = lambda x, w=w: c04.swiglu(x, *(w(f"mlp.{n}_proj.weight") for n in ("gate", "up", "down")))
        x = c04.layer(x, norms[0], lambda x, i=i, w=w: attend(x, i, w), norms[1], mlp)
    if moves:
        cache.advance(positions, real[:, -s:])
    return c01.rms_norm(x, weights["model.norm.weight"], c.rms_norm_eps) if norm else x


def with_decode(**options):
    return {"decode": lambda *a: decoded(*a, **options)}


def looped(my, weights, config, ids, features, placeholder, stop, limit, row=-1, move=1, keep_end=False, again=False, drop=False, fresh=False):
    """A loop with one step left out or wrong."""
    table = weights["model.embed_tokens.weight"]
    x, real, positions = c10.splice([ids], lambda i: table[i], features, placeholder, "right")
    whole, cache, new = x, c05.Cache(config.num_hidden_layers), []
    while len(new) < limit:
        hidden = decode(my, weights, config, x, positions, real, cache)
        token = int((hidden[0, row if x.shape[1] > 1 else 0] @ weights["lm_head.weight"].T).argmax())
        if token in stop:
            return new + [token] * keep_end
        new.append(token)
        row = {"first": -1}.get(row, row)
        step = table[[token]][None]
        if again:
            whole = torch.cat([whole, step], 1)
            x, positions = whole, torch.arange(whole.shape[1])[None]
            real = torch.ones(1, cache.length + x.shape[1]).bool()
            continue
        x, positions = step, positions[:, -1:] + move
        if fresh:
            cache, real = c05.Cache(config.num_hidden_layers), torch.ones(1, 0).bool()
        real = torch.cat([real, torch.ones(1, 1).bool()], 1)
    return new[1:] if drop else new


def with_loop(**options):
    return {"answer": lambda *a: looped(*a, **options)}


def endless(my, weights, config, ids, features, placeholder, stop, limit):
    return looped(my, weights, config, ids, features, placeholder, (), limit)


LESSON = Lesson(
    12, "loop", "the loop: your parts answer about a JPEG", {"decode": decode, "answer": answer}, cases,
    (
        Mistake("final norm forgotten", "the layers' output goes into the head as it is.", "apply model.norm after the last layer.", with_decode(norm=False)),
        Mistake("biases forgotten", "q, k and v have biases in Qwen2.", "add q_proj.bias, k_proj.bias and v_proj.bias.", with_decode(bias=False)),
        Mistake("queries and keys not turned", "no position is known.", "rotate q and k, before the keys go into the cache.", with_decode(rotate=False)),
        Mistake("keys not turned", "the queries were turned, the keys were not.", "rotate the keys too, before they go into the cache.",
                with_decode(store="plain")),
        Mistake("the cache does not advance", "the second pass writes over the first.", "call cache.advance once, after the last layer.",
                with_decode(moves=False)),
        Mistake("the first row instead of the last", "the first token was chosen from the row of the first position.",
                "take the hidden state of the last row.", with_loop(row=0)),
        Mistake("the position does not move", "every new token stands at the position of the last row of the prompt.",
                "add one to the position in each pass.", with_loop(move=0)),
        Mistake("the position moves by two", "a position is skipped in every pass.", "add one to the position in each pass.", with_loop(move=2)),
        Mistake("the end token is part of the answer", "the answer ends before it.", "leave the loop before you append the end token.",
                with_loop(keep_end=True)),
        Mistake("the end token is ignored", "the answer goes on to the limit.", "compare the token with stop.", {"answer": endless}),
        Mistake("the prompt read again in every pass", "what is in the cache was put in a second time.",
                "after the first pass, give the decoder the new token's row alone.", with_loop(again=True)),
        Mistake("a new cache in every pass", "the new token sees nothing of the prompt.", "make the cache once, before the loop.", with_loop(fresh=True)),
        Mistake("first token lost", "the token from the prompt's pass was not appended.", "append the first token as well.", with_loop(drop=True)),
    ),
    {"decode": "angles from positions; in each layer my.layer with my.rms_norm, an attention (project, split into heads, rotate, cache.write, "
               "my.visible, my.attention, join, o_proj) and my.swiglu; cache.advance; the final norm.",
     "answer": "splice; loop up to limit: decode, last row, head, argmax, stop?, append; next row is the token's embedding, next position is plus "
               "one, real grows by one True."},
    ("loop",),
)  # fmt: skip
