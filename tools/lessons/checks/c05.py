"""The check of lesson 5, the cache. `Bridge` lets the real decoder use a learner's cache; `swap.py` uses it too."""

import functools

import torch

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.cache import KVCache
from vita_ref.config import DecoderConfig
from vita_ref.decoder import Decoder


class Cache:
    """The package's cache in the form of the lesson."""

    def __init__(self, num_layers):
        self.layers, self.kv = num_layers, None

    @property
    def length(self):
        return 0 if self.kv is None else self.kv.length

    def write(self, layer, keys, values):
        if self.kv is None:
            self.kv = KVCache(self.layers, keys.shape[0], keys.shape[1], None, keys.shape[3], keys.dtype)
        return self.kv.write(layer, keys, values)

    def advance(self, positions, real):
        self.kv.advance(positions.shape[1], real, positions)

    def next_positions(self):
        return self.kv.next_positions

    def truncate(self, length):
        self.kv.truncate(length)


class Bridge:
    """A learner's cache with what the decoder asks of a cache."""

    def __init__(self, mine, layers, rows):
        self.mine, self.keys, self.columns, self.rows = mine, torch.empty(layers, rows), [], rows

    @property
    def length(self):
        return self.mine.length

    @property
    def mask(self):
        return torch.cat([torch.ones(self.rows, 0).bool(), *self.columns], 1)[:, : self.length]

    @property
    def padded(self):
        return not bool(self.mask.all())

    @property
    def next_positions(self):
        return self.mine.next_positions() if self.columns else torch.zeros(self.rows).long()

    def reserve(self, length):
        """Nothing: how a learner's cache gets its memory is its own affair."""

    def write(self, layer, keys, values):
        return self.mine.write(layer, keys, values)

    def advance(self, n, real=None, positions=None):
        real = torch.ones(self.rows, n).bool() if real is None else real
        self.columns.append(real)
        self.mine.advance(positions.expand(self.rows, n), real)


@functools.cache
def tiny():
    """A decoder of two layers with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(DecoderConfig(11, 16, 24, 2, 4, 2, 4)).eval()


def logits(my, chunks, ids, real=None):
    """The logits of a prompt that is read in chunks of these sizes, without those of padding."""
    decoder, out, start = tiny(), [], 0
    cache = Bridge(my.Cache(2), 2, len(ids))
    with torch.no_grad():
        for n in chunks:
            part = slice(start, start + n)
            mask = None if real is None else real[:, part]
            hidden = decoder(decoder.embed_tokens(ids[:, part]), attention_mask=mask, cache=cache).last_hidden_state
            out.append(decoder.lm_head(hidden))
            start += n
    joined = torch.cat(out, 1)
    return joined if real is None else joined * real[..., None]


def columns(n, at=0):
    """Keys and values of n columns [1, 1, n, 2], filled with their numbers from ``at``."""
    k = (torch.arange(n) + at).float().view(1, 1, n, 1).expand(1, 1, n, 2)
    return k, -k


def one_pass(cache, n, at=0, layers=2, shift=100):
    """A pass of n columns through all layers; the values of layer i are higher by ``shift``. Gives the last write's keys."""
    for layer in range(layers):
        k, v = columns(n, at)
        out = cache.write(layer, k + shift * layer, v)
    cache.advance((torch.arange(n) + at)[None], torch.ones(1, n).bool())
    return out


def written(my):
    cache = my.Cache(2)
    first = cache.write(0, *columns(2))
    cache.write(1, *columns(2))
    before = cache.length
    cache.advance(torch.arange(2)[None], torch.ones(1, 2).bool())
    return first[0].clone(), first[1].clone(), before, cache.length


def second_pass(my):
    cache = my.Cache(2)
    one_pass(cache, 2)
    keys, values = cache.write(0, *columns(1, 2))
    return keys.clone(), values.clone()


def layers_apart(my):
    cache = my.Cache(2)
    one_pass(cache, 2)
    keys = cache.write(0, *columns(1, 2))[0].clone()
    return keys[0, 0, :, 0], cache.write(1, *columns(1, 102))[0][0, 0, :, 0].clone()


def after_a_failure(my):
    cache = my.Cache(2)
    one_pass(cache, 2)
    cache.write(0, *columns(3, 50))  # then something fails
    return cache.write(0, *columns(1, 2))[0][0, 0, :, 0].clone()


def positions(my):
    cache = my.Cache(1)
    cache.write(0, randn(3, 1, 5, 2), randn(3, 1, 5, 2))
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
    cache.advance(torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 0, 0], [0, 0, 0, 1, 2]]), real)
    return cache.next_positions()


def padding_alone(my):
    cache = my.Cache(1)
    cache.write(0, randn(2, 1, 3, 2), randn(2, 1, 3, 2))
    cache.advance(torch.zeros(2, 3).long(), torch.tensor([[0, 0, 1], [0, 0, 0]]).bool())
    return cache.length, cache.next_positions()


def shared_positions(my):
    cache = my.Cache(1)
    cache.write(0, randn(1, 1, 5, 2), randn(1, 1, 5, 2))
    cache.advance(torch.tensor([[0, 1, 1, 2, 2]]), torch.ones(1, 5).bool())
    return cache.next_positions()


def truncated(my):
    cache = my.Cache(2)
    one_pass(cache, 3)
    one_pass(cache, 2, 3)
    cache.truncate(2)
    length, following = cache.length, cache.next_positions().clone()
    return length, following, cache.write(0, *columns(1, 7))[0][0, 0, :, 0].clone()


def truncated_then_on(my):
    cache = my.Cache(2)
    one_pass(cache, 5)
    cache.truncate(2)
    one_pass(cache, 1, 7)
    return cache.next_positions()


def cases():
    ids = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1]]).bool()
    whole = lambda real=None: logits(LESSON_NAMESPACE, [7], ids, real)
    k, v = columns(2)
    return [
        Case("two layers write two columns; the length moves at the end of the pass", "Cache", written, (k, v, 0, 2)),
        Case("a second pass returns the old columns, then the new one", "Cache", second_pass, columns(3)),
        Case("each layer has its own columns", "Cache", layers_apart, (torch.tensor([0.0, 1, 2]), torch.tensor([100.0, 101, 102]))),
        Case("a pass that failed leaves nothing behind", "Cache", after_a_failure, torch.tensor([0.0, 1, 2])),
        Case("the next positions of a row of 5, and of two rows of 3 with padding on either side", "Cache", positions,
             torch.tensor([5, 3, 3])),
        Case("three columns of padding but for one: the length is 3; a row without a real token begins at 0", "Cache", padding_alone,
             (3, torch.tensor([1, 0]))),
        Case("positions that are shared by two columns: 0 1 1 2 2 goes on with 3", "Cache", shared_positions, torch.tensor([3])),
        Case("truncate to 2 of 5 columns, then write one", "Cache", truncated, (2, torch.tensor([2]), torch.tensor([0.0, 1, 7]))),
        Case("truncate to 2 of 5 columns, then a pass at position 7 goes on with 8", "Cache", truncated_then_on, torch.tensor([8])),
        Case("the real decoder: chunks of 3 and 4 give the logits of one pass", "Cache",
             lambda my: logits(my, [3, 4], ids), whole(), 1e-4),
        Case("one token at a time", "Cache", lambda my: logits(my, [1] * 7, ids), whole(), 1e-4),
        Case("with padding on the left of one row, chunks of 5, 1 and 1", "Cache",
             lambda my: logits(my, [5, 1, 1], ids, real), whole(real), 1e-4),
    ]  # fmt: skip


# ---- wrong versions


class Plain(Cache):
    """A cache of lists, from which the wrong versions differ in one line."""

    def __init__(self, num_layers):
        self.stored, self._length, self.positions, self.real = [None] * num_layers, 0, None, None

    @property
    def length(self):
        return self._length

    def old(self, layer):
        return self.stored[layer]

    def write(self, layer, keys, values):
        if self.old(layer) is not None:
            keys, values = (torch.cat([old[:, :, : self.length], new], 2) for old, new in zip(self.old(layer), (keys, values)))
        self.stored[layer] = keys, values
        return keys, values

    def advance(self, positions, real):
        self._length += positions.shape[1]
        self.positions = positions if self.positions is None else torch.cat([self.positions, positions], 1)
        self.real = real if self.real is None else torch.cat([self.real, real], 1)

    def next_positions(self):
        return torch.where(self.real, self.positions + 1, 0).amax(1)

    def truncate(self, length):
        self._length, self.positions, self.real = length, self.positions[:, :length], self.real[:, :length]


class MovesInWrite(Plain):
    def write(self, layer, keys, values):
        out = super().write(layer, keys, values)
        self._length += keys.shape[2]
        return out

    def advance(self, positions, real):
        super().advance(positions, real)
        self._length -= positions.shape[1]


class MovesTwice(MovesInWrite):
    def advance(self, positions, real):
        Plain.advance(self, positions, real)


class MovesInTheLast(Plain):
    def write(self, layer, keys, values):
        out = super().write(layer, keys, values)
        self._length += keys.shape[2] * (layer == len(self.stored) - 1)
        return out

    def advance(self, positions, real):
        super().advance(positions, real)
        self._length -= positions.shape[1]


class LengthOfReal(Plain):
    def advance(self, positions, real):
        super().advance(positions, real)
        self._length += int(real[0].sum()) - real.shape[1]


class LengthOfRealCuts(LengthOfReal):
    def next_positions(self):
        return torch.where(self.real, self.positions + 1, 0)[:, : self.length].amax(1)


class PaddingHasPosition(Plain):
    def next_positions(self):
        return self.positions.amax(1) + 1


class Swapped(Plain):
    def write(self, layer, keys, values):
        return super().write(layer, keys, values)[::-1]


class JoinsHeads(Plain):
    def write(self, layer, keys, values):
        if self.stored[layer] is not None:
            keys, values = (torch.cat([old[:, :, : self.length], new], 1) for old, new in zip(self.stored[layer], (keys, values)))
        self.stored[layer] = keys, values
        return keys, values


class OnlyNew(Plain):
    def write(self, layer, keys, values):
        super().write(layer, keys, values)
        return keys, values


class OneForAll(Plain):
    def write(self, layer, keys, values):
        return super().write(0, keys, values)


class NewFirst(Plain):
    def write(self, layer, keys, values):
        old = self.stored[layer]
        if old is not None:
            keys, values = (torch.cat([new, o], 2) for o, new in zip(old, (keys, values)))
        self.stored[layer] = keys, values
        return keys, values


class KeepsFailed(Plain):
    def write(self, layer, keys, values):
        if self.stored[layer] is not None:
            keys, values = (torch.cat([o, new], 2) for o, new in zip(self.stored[layer], (keys, values)))
        self.stored[layer] = keys, values
        return keys, values

    def truncate(self, length):
        super().truncate(length)
        self.stored = [None if s is None else tuple(x[:, :, :length] for x in s) for s in self.stored]


class KeepsTruncated(KeepsFailed):
    truncate = Plain.truncate


class CountsPadding(Plain):
    def next_positions(self):
        return torch.full((len(self.positions),), self.length)


class CountsColumns(Plain):
    def next_positions(self):
        return self.real.sum(1)


class OffByOne(Plain):
    def next_positions(self):
        return super().next_positions() - 1


class LastColumn(Plain):
    def next_positions(self):
        return self.positions[:, -1] + 1


class KeepsPositions(Plain):
    def next_positions(self):
        return torch.where(self.real, self.positions + 1, 0)[:, : self.length].amax(1)

    def truncate(self, length):
        self._length = length


class TruncatesLengthOnly(Plain):
    def truncate(self, length):
        self._length = length


def wrong(cls):
    return {"Cache": cls}


class LESSON_NAMESPACE:
    """The reference, for what a whole pass gives."""

    Cache = Cache


LESSON = Lesson(
    5, "cache", "the KV cache", {"Cache": Cache}, cases,
    (
        Mistake("the length moves in every write", "layer 1 finds the length already moved by layer 0.",
                "change the length in advance alone.", wrong(MovesInWrite)),
        Mistake("the length moves in write and in advance", "columns are counted more than once.",
                "change the length in advance alone.", wrong(MovesTwice)),
        Mistake("the length moves in the last layer's write", "it has to move in advance: a pass may fail after its last write.",
                "change the length in advance alone.", wrong(MovesInTheLast)),
        Mistake("the length counts real tokens", "padding takes a column, so it counts.", "let the length grow by S, padding or not.",
                wrong(LengthOfReal), (wrong(LengthOfRealCuts),)),
        Mistake("keys and values swapped", "the values were returned first.", "return the keys, then the values.", wrong(Swapped)),
        Mistake("joined along the heads", "the columns are dimension 2 of [B, G, S, K].", "join along dimension 2.", wrong(JoinsHeads)),
        Mistake("only the new columns returned", "the queries would see nothing of what came before.",
                "return the stored columns with the new ones behind them.", wrong(OnlyNew)),
        Mistake("one store for all layers", "layer 1 overwrites or continues what layer 0 has stored.",
                "keep keys and values for each layer by itself.", wrong(OneForAll)),
        Mistake("new columns in front", "the new columns stand before the old ones.", "join old, then new.", wrong(NewFirst)),
        Mistake("columns of a failed pass kept", "what a failed pass wrote is still there.",
                "cut the stored columns to the length before you add new ones.", wrong(KeepsFailed)),
        Mistake("columns behind the length kept", "a write went behind all stored columns, also those of a failed pass or behind a truncation.",
                "cut the stored columns to the length before you add new ones.", wrong(KeepsTruncated)),
        Mistake("positions count padding", "padding takes a column, but no position.",
                "go on from the largest position of a real column, not from the length.", wrong(CountsPadding)),
        Mistake("real columns counted", "the number of real columns is the next position only where no two columns share one.",
                "go on from the position id of the last real column, plus one.", wrong(CountsColumns)),
        Mistake("position off by one", "the next token gets the position of the last one.", "add one.", wrong(OffByOne)),
        Mistake("position of the last column", "the last column may be padding, whose position id is 0.",
                "look for the last column that is real.", wrong(LastColumn)),
        Mistake("padding counted as position 0", "a row without a real token has used no position yet.",
                "look at real columns alone, and begin at 0 in a row that has none.", wrong(PaddingHasPosition)),
        Mistake("truncate forgets the positions", "the length went back, the positions did not.",
                "cut the stored positions and the padding marks as well.", wrong(TruncatesLengthOnly)),
        Mistake("positions behind truncated ones", "the next pass put its positions behind those that truncate should have removed.",
                "cut the stored positions and the padding marks in truncate, or before you add to them.", wrong(KeepsPositions)),
    ),
    {"Cache": "keep a pair of tensors for each layer; write: cut the pair to the length, join the new columns behind it, "
              "store and return it; advance: join positions and real, add S to the length; next_positions: 1 + the position "
              "of the last real column of each row; truncate: cut positions and real, set the length."},
    ("cache",),
)  # fmt: skip
