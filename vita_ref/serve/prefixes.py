"""What the server remembers of conversations, so that earlier turns are not read again.

A `Prefix` has the keys and values of a prompt and its answer. A later prompt that begins in the same way continues
behind them. The oldest are given up, so that memory is bounded.

L decoder layers, B batch rows, G key/value heads, T positions of a cache, n those of one prefix, K head size.

Test: ``pytest tests/serve/test_prefixes.py``
"""

from dataclasses import dataclass

import torch

from ..chat import common_prefix, size
from ..dialogue.messages import Medium
from .limits import MAX_PREFIX_BYTES, MAX_PREFIXES


@dataclass(eq=False)
class Prefix:
    """A conversation that was answered: its messages, its elements (ids and media), and their keys and values.

    Shapes: keys and values [L, G, n, K].
    """

    messages: list
    media: dict
    elements: list
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def length(self):
        """The positions that it has."""
        return self.keys.shape[2]


class Prefixes:
    """The prefixes of a server, the last used ones first. Only the thread that computes calls the methods.

    ``media`` has the media of all prefixes by their keys. It is replaced, never changed, so any thread may read it.
    """

    def __init__(self, most=MAX_PREFIXES, most_bytes=MAX_PREFIX_BYTES):
        self.most, self.most_bytes, self.media, self._kept = most, most_bytes, {}, []

    def __len__(self):
        return len(self._kept)

    @property
    def nbytes(self):
        """Bytes of all keys and values, and of the features of media."""
        media = {medium for each in self._kept for medium in each.media.values()}
        features = sum(medium.features.nbytes for medium in media if medium.features is not None)
        return features + sum(each.keys.nbytes + each.values.nbytes for each in self._kept)

    def recall(self, question):
        """Gives the messages of a question the media that are known, and its answers the ids that were generated.

        An answer that a client sends back is only its text, which another sequence of ids may spell.
        """
        replaced = {each: self.media[key] for key, each in question.media.items() if key in self.media}
        question.media = {key: replaced.get(each, each) for key, each in question.media.items()}
        for message in question.messages:
            message.parts = [replaced.get(part, part) if isinstance(part, Medium) else part for part in message.parts]
        common = [equal_messages(question.messages, each.messages) for each in self._kept]
        if not common or not max(common):
            return
        known = self._kept[common.index(max(common))].messages
        for new, old in list(zip(question.messages, known))[: max(common)]:
            if old.role == "assistant":
                new.ids, new.rest, new.state = old.ids, old.rest, old.state

    def find(self, elements):
        """The prefix that has most positions in common with a prompt: it, how many elements, and how many positions."""
        best = None, 0, 0
        for prefix in self._kept:
            count, past = common_prefix(prefix.elements, elements, prefix.length)
            if past > best[2]:
                best = prefix, count, past
        if best[0] is not None:
            self._kept.remove(best[0])
            self._kept.insert(0, best[0])
        return best

    def keep(self, cache, row, elements, messages, media):
        """Keeps the keys and values of a row that was answered. One that it continues is replaced."""
        columns = cache.mask[row].nonzero()[:, 0]  # all but padding
        count, n = common_prefix(elements, [*elements, None], len(columns))
        keys, values = (
            x[:, row, :, : cache.length].index_select(2, columns[:n]) for x in (cache.keys, cache.values)
        )  # [L, G, n, K]
        elements = elements[:count]
        shorter = [each for each in self._kept if elements[: len(each.elements)] == each.elements]
        self._kept = [each for each in self._kept if each not in shorter]
        self._kept.insert(0, Prefix(messages, media, elements, keys, values))
        while len(self._kept) > self.most or self.nbytes > self.most_bytes:
            self._kept.pop()
        self.media = {key: medium for each in self._kept for key, medium in each.media.items()}

    @staticmethod
    def cache(decoder, found):
        """A cache whose rows begin with prefixes, (prefix or None, positions) each, with padding on the left."""
        cache, longest = decoder.new_cache(len(found)), max(past for _, past in found)
        if not longest:
            return cache
        shape = (*cache.keys.shape[:3], longest, cache.keys.shape[4])
        keys, values = (cache.keys.new_zeros(shape) for _ in range(2))  # [L, B, G, T, K]
        real = torch.zeros(len(found), longest, dtype=torch.bool, device=keys.device)  # [B, T]
        positions = torch.zeros_like(real, dtype=torch.long)  # [B, T]
        for row, (prefix, past) in enumerate(found):
            if past:
                keys[:, row, :, -past:], values[:, row, :, -past:] = prefix.keys[:, :, :past], prefix.values[:, :, :past]
                real[row, -past:] = True
                positions[row, -past:] = torch.arange(past, device=keys.device)
        for layer in range(len(keys)):
            cache.write(layer, keys[layer], values[layer])
        cache.advance(longest, None if real.all() else real, positions)
        return cache


def equal_messages(new, old):
    """How many messages two conversations begin with in common."""
    count = 0
    for a, b in zip(new, old):
        same = a.role == b.role and (a.text.strip() == b.text.strip() if a.role == "assistant" else a.parts == b.parts)
        if not same:
            break
        count += 1
    return count


def total(elements):
    """The positions of a prompt."""
    return sum(map(size, elements))
