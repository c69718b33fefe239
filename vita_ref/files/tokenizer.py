"""Text -> token ids, and token ids -> text, as a whole or as a stream. One class for three kinds of tokenizer files.

    tokenizer.json              of the `tokenizers` library: byte-level (GPT-2, Qwen2), ▁ for spaces (Llama), or words
    vocab.json + merges.txt     the byte-level BPE of Qwen2
    tokenizer.model             a SentencePiece model

Each id stands for bytes of UTF-8, which may be only a part of a character. The bytes of all ids together are the text.
So `StreamDecoder` only has to keep the one to three bytes of an unfinished character; ``Tokenizer.decode`` uses a
`StreamDecoder` too. ``backends.py`` has the bytes of each id.

Test: ``pytest tests/files/test_tokenizer.py``
"""

import codecs
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from .added import ROLES, added_tokens, read_settings, system_text, token_name
from .backends import BpeBackend, SentencePieceBackend
from .messages import one_line_errors
from .template import chat_template

QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")  # in tokenizer_config.json


@dataclass(frozen=True)
class Encoding:
    """The result of ``tokenizer(text)``: ids as a list, or as a tensor [1, n] with ``return_tensors="pt"``."""

    input_ids: list | torch.Tensor


class Tokenizer:
    """A vocabulary with its special tokens. `load_tokenizer` makes it.

    Attributes:
        bos_token_id, eos_token_id, pad_token_id: ids, None if there is no such token.
        special_ids: ids that ``decode(skip_special_tokens=True)`` leaves out.
        chat_template: the folder's `ChatTemplate`, or None.
        system_prompt: the default system text in it, or None.
    """

    def __init__(self, backend, settings, template):
        self._backend = backend
        self.special_ids = frozenset(backend.special_ids)
        self.leading_spaces = backend.leading_spaces
        names = {role: token_name(settings.get(role)) for role in ROLES}
        ids = backend.role_ids | {role: backend.id_of(name) for role, name in names.items() if name is not None}
        self.bos_token_id = ids.get("bos_token")
        self.eos_token_id = ids.get("eos_token")
        self.pad_token_id = ids.get("pad_token")
        self.adds_bos = bool(settings.get("add_bos_token", self.bos_token_id in backend.added_in_front))
        if self.adds_bos and self.bos_token_id is None:
            raise ValueError("tokenizer_config.json: add_bos_token is true, but there is no bos_token")
        self.chat_template = template
        self.system_prompt = system_text(template.texts["default"]) if template else None

    def __len__(self) -> int:
        """One more than the highest id."""
        return self._backend.size

    def __contains__(self, token_id):
        """Whether an id is a token. Ids below ``len`` need not be contiguous."""
        return self._bytes(token_id) is not None

    def encode(self, text: str) -> list[int]:
        """The ids of a text as a list. Names of special tokens in it become those tokens.

        Raises: ValueError if the text contains half of a surrogate pair, which has no UTF-8.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text must be a str, got {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from None
        return self._backend.encode(text)

    def __call__(self, text: str, return_tensors: str | None = None) -> Encoding:
        """``encode`` with the BOS token in front, if this tokenizer adds one; ``.input_ids`` has the ids.

        Shapes: a list of n ints; [1, n] long with ``return_tensors="pt"``.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
        ids = self.encode(text)
        if self.adds_bos and ids[:1] != [self.bos_token_id]:
            ids = [self.bos_token_id, *ids]
        return Encoding(ids if return_tensors is None else torch.tensor([ids], dtype=torch.long))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids (a list or a 1-D tensor). Bytes that are not UTF-8 become U+FFFD.

        Raises: ValueError for an id outside the vocabulary.
        """
        stream = StreamDecoder(self, skip_special_tokens)
        return stream.push(ids) + stream.flush()

    def id_of(self, token: str) -> int | None:
        """The id of one token by its name, or None."""
        return self._backend.id_of(token)

    def piece(self, token_id: int) -> bytes:
        """The bytes that one id stands for.

        Raises: ValueError for an id outside the vocabulary.
        """
        piece = self._bytes(token_id)
        if piece is None:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {len(self)} tokens")
        return piece

    def _bytes(self, token_id):
        return self._backend.piece(token_id) if token_id >= 0 else None


class StreamDecoder:
    """Turns ids into text while they arrive. Text that was returned never changes, and no character is split.

    All results of `push` and that of `flush`, joined, are ``tokenizer.decode`` of all ids. The time per id is constant.

    Example: the emoji 😀 is four bytes; for four tokens of one byte each, `push` returns "", "", "" and "😀".
    """

    def __init__(self, tokenizer, skip_special_tokens=True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces = tokenizer.leading_spaces  # how many pieces may still lose their leading space

    def push(self, ids):
        """The text that the next ids complete; it may be empty."""
        return self._utf8.decode(b"".join(map(self._piece, map(operator.index, ids))))

    def flush(self):
        """The end of the text: U+FFFD for an unfinished character, or nothing."""
        return self._utf8.decode(b"", final=True)

    def _piece(self, token_id):
        piece = self._tokenizer.piece(token_id)
        if token_id in self._skipped:
            return b""
        if self._spaces and piece.startswith(b" "):
            self._spaces -= 1
            piece = piece[1:]
        if piece:  # the text has begun
            self._spaces = 0
        return piece


@one_line_errors
def load_tokenizer(folder):
    """The tokenizer of a checkpoint folder, None if it has no tokenizer files.

    Special tokens come from the tokenizer file, ``tokenizer_config.json``, ``special_tokens_map.json``
    and ``added_tokens.json``, in the format of Hugging Face.

    Raises: ValueError if a file is damaged, ids contradict each other, or the library that reads it is missing.
    """
    folder = Path(folder)
    single, vocab, model = (folder / name for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))
    if not any(map(os.path.isfile, (single, vocab, model))):
        return None
    settings = read_settings(folder)
    added = added_tokens(folder, settings)
    if os.path.isfile(single):
        backend = BpeBackend.from_json(single, added, settings.get("tokenizer_class") in QWEN2_CLASSES)
    elif os.path.isfile(vocab):
        backend = BpeBackend.from_vocab(vocab, folder / "merges.txt", added)
    else:
        backend = SentencePieceBackend(model, added)
    return Tokenizer(backend, settings, chat_template(folder, settings))
