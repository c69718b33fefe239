"""The vocabularies that `Tokenizer` uses, one class for each library. Both give the bytes of every token.

    BpeBackend              the `tokenizers` library: a tokenizer.json, or vocab.json and merges.txt of Qwen2
    SentencePieceBackend    the `sentencepiece` library: a tokenizer.model

A backend has

    encode(text) -> ids     id_of(token) -> id or None     piece(id) -> bytes or None
    size                    one more than the highest id
    special_ids             ids that are left out of an answer
    added_in_front          ids that the file itself puts in front of a text, such as BOS
    role_ids                "bos_token", "eos_token", "pad_token" -> id, if the file contains them
    leading_spaces          how many pieces at the start of a text may lose their leading space

Test: ``pytest tests/files/test_tokenizer.py``
"""

import contextlib
import json
import math
import os
import re

from .messages import shown
from .values import read_bytes, read_text

# Qwen2 splits text before BPE: English contractions, words with at most one sign in front, single digits, runs of
# signs, white space.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Names like <|user|> or <s>: a SentencePiece model does not say which of its pieces are special tokens.
_MARKUP = re.compile(r"<[^<>\s]+>")


class BpeBackend:
    """A tokenizer of the `tokenizers` library, with the bytes of each of its tokens.

    ``added`` maps the name of each added token to its ``id`` (None if no file gives one) and its flags.
    """

    def __init__(self, tok, added, path):
        tok.no_truncation()  # both may have been saved in the file
        tok.no_padding()
        _add_tokens(tok, added, path)
        known = tok.get_added_tokens_decoder()
        self._tok, self._path = tok, path
        self._added = {i: token.content.encode() for i, token in known.items()}
        self.special_ids = {i for i, token in known.items() if token.special}
        self.special_ids |= {tok.token_to_id(name) for name, flags in added.items() if flags["special"]}
        self.added_in_front = tok.encode("").ids[:1]
        self.role_ids = {}  # the file does not contain them
        self.size = max(tok.get_vocab_size(), *(i + 1 for i in self._added), 0)  # ids need not be contiguous
        self._bytes_of, self.leading_spaces = _alphabet(tok, path)

    @classmethod
    def from_json(cls, path, added, qwen2=False):
        """Reads a ``tokenizer.json``. With ``qwen2``, its steps before BPE are those of Qwen2, whatever it says.

        Raises: ValueError if it is damaged or cannot be streamed.
        """
        library, content = _import_tokenizers(path), read_text(path, "vocabulary")
        with _library_errors(f"{path} is not a tokenizer file"):
            tok = library.Tokenizer.from_str(content)
            if qwen2 and isinstance(tok.model, library.models.BPE):
                tok = _as_qwen2(tok, content, added, library)
            return cls(tok, added, path)

    @classmethod
    def from_vocab(cls, vocab_path, merges_path, added):
        """Reads ``vocab.json`` and ``merges.txt`` of Qwen2. Raises: ValueError if one is missing or damaged."""
        return cls(_open_qwen2(vocab_path, merges_path, added), added, vocab_path)

    def encode(self, text):
        with _library_errors(f"{self._path} cannot encode {shown(text)}; a vocabulary of words needs an unk_token"):
            return self._tok.encode(text, add_special_tokens=False).ids

    def id_of(self, token):
        return self._tok.token_to_id(token)

    def piece(self, token_id):
        name = self._tok.id_to_token(token_id) if token_id < 2**32 else None
        return None if name is None else self._added.get(token_id) or self._bytes_of(name)


class SentencePieceBackend:
    """A SentencePiece model, and the tokens that were added after its vocabulary (``added``: see `BpeBackend`)."""

    added_in_front = ()

    def __init__(self, path, added):
        self._model = model = _open_sentencepiece(path)
        self._known = model.get_piece_size()
        names = {model.id_to_piece(i): i for i in range(self._known)}
        # Tokens that the model does not find in a text by itself: its control pieces, and the tokens added after it.
        self._extra = {name: i for name, i in names.items() if model.is_control(i)}
        markup = [i for name, i in names.items() if _MARKUP.fullmatch(name) and not model.is_byte(i)]
        self.special_ids = {*markup, *self._extra.values(), model.unk_id()}
        self.size = self._known
        for name, flags in added.items():
            token_id = names.get(name, self.size)
            _check_id(path, name, token_id, flags)
            if token_id == self.size:
                self._extra[name], self.size = token_id, self.size + 1
            if flags["special"]:
                self.special_ids.add(token_id)
        self._added = {i: name for name, i in self._extra.items() if i >= self._known}
        longest_first = sorted(self._extra, key=len, reverse=True)
        self._extra_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.leading_spaces = _count_leading_spaces(model.decode_pieces)
        roles = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "pad_token": model.pad_id()}
        self.role_ids = {role: i for role, i in roles.items() if i >= 0}

    def encode(self, text):
        ids, start = [], 0
        for match in self._extra_pattern.finditer(text):
            ids += [*self._model.encode(text[start : match.start()]), self._extra[match.group()]]
            start = match.end()
        return ids + self._model.encode(text[start:])

    def id_of(self, token):
        token_id = self._extra.get(token, self._model.piece_to_id(token))  # that of <unk> for an unknown token
        exact = token_id >= self._known or self._model.id_to_piece(token_id) == token
        return token_id if exact else None

    def piece(self, token_id):
        if token_id >= self._known:
            return self._added[token_id].encode() if token_id in self._added else None
        if self._model.is_control(token_id):
            return b""
        if self._model.is_unknown(token_id):
            return self._model.decode([token_id]).encode()
        return _metaspace_bytes(self._model.id_to_piece(token_id))


# ---- the bytes of a token


def _word_bytes(name):
    """The bytes of a token that is a whole word."""
    return b" " + name.encode()


def _byte_level_bytes(name):
    """The bytes of a token in GPT-2's alphabet. Example: ``Ġcat`` is b" cat"."""
    return bytes(_BYTE_OF_CHAR[c] for c in name) if _BYTE_OF_CHAR.keys() >= set(name) else name.encode()


def _metaspace_bytes(name):
    """The bytes of a SentencePiece token. Example: ``▁cat`` is b" cat", ``<0x41>`` is the byte 0x41."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _byte_of_char():
    """GPT-2's alphabet, character -> byte: visible bytes are themselves, the others are characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(moved)}


_BYTE_OF_CHAR = _byte_of_char()


def _alphabet(tok, path):
    """The function token -> bytes, and the number of leading spaces. Both come from tests of the tokenizer's decoder."""
    if tok.decoder is None:
        return _word_bytes, 1
    if tok.decoder.decode(["a", "Ġb"]) == "a b":
        return _byte_level_bytes, 0
    if tok.decoder.decode(["a", "▁b"]) == "a b":
        return _metaspace_bytes, _count_leading_spaces(tok.decoder.decode)
    raise ValueError(f"{path}: its {type(tok.decoder).__name__} decoder is not one that can be streamed here")


def _count_leading_spaces(decode_pieces):
    """How many pieces at the start of a text lose their leading space: none, one, or all that have one."""
    return (0, 1, math.inf)[len("  x") - len(decode_pieces(["▁", "▁", "x"]))]


# ---- opening files


def _add_tokens(tok, added, path):
    """Adds the tokens that a tokenizer does not have yet, and checks the ids of all."""
    from tokenizers import AddedToken

    known = {token.content for token in tok.get_added_tokens_decoder().values()}
    new = {name: {k: v for k, v in flags.items() if k != "id"} for name, flags in added.items() if name not in known}
    tok.add_tokens([AddedToken(name, **flags) for name, flags in new.items()])
    for name, flags in added.items():
        _check_id(path, name, tok.token_to_id(name), flags)


def _check_id(path, name, token_id, flags):
    if flags["id"] not in (None, token_id):
        raise ValueError(f"{path}: {shown(name)} has the id {token_id}, but tokenizer_config.json says {flags['id']}")


def _open_qwen2(vocab_path, merges_path, added):
    """Qwen2's tokenizer from its two files: NFC, split, then BPE on bytes."""
    library = _import_tokenizers(vocab_path)
    if not os.path.isfile(merges_path):
        raise ValueError(f"{vocab_path} needs merges.txt next to it")
    ids = {name: flags["id"] for name, flags in added.items() if flags["id"] is not None}
    paths, bpe = (str(vocab_path), str(merges_path)), library.models.BPE
    for path in paths:
        read_bytes(path, "vocabulary")
    with _library_errors(f"{vocab_path} and merges.txt are not a BPE vocabulary"):
        tok = library.Tokenizer(bpe.from_file(*paths))
    for name, i in ids.items():
        if (owner := tok.id_to_token(i)) not in (None, name):
            raise ValueError(f"{vocab_path}: the id {i} is {shown(owner)}, but tokenizer_config.json gives it to {shown(name)}")
    new_ids = sorted(i for name, i in ids.items() if tok.token_to_id(name) != i)
    size = tok.get_vocab_size()
    if new_ids != [*range(size, size + len(new_ids))]:  # ids with gaps, which the library would renumber
        vocab, merges = bpe.read_file(*paths)
        tok = library.Tokenizer(bpe(vocab=ids | vocab, merges=merges))
    return _set_qwen2_steps(tok, library)


def _as_qwen2(tok, content, added, library):
    """A tokenizer.json of the class Qwen2Tokenizer, as `transformers` reads it.

    Conversion from GGUF leaves out the normalizer. Special tokens are found before the text is normalised: otherwise
    ``<|im_end|>`` and a combining U+0338 would become other characters. Flags in tokenizer_config.json have priority.
    """
    normalized = {token.content: token.normalized for token in tok.get_added_tokens_decoder().values()}
    special = {token.content: token.special for token in tok.get_added_tokens_decoder().values()}
    special |= {name: flags["special"] for name, flags in added.items()}
    wanted = normalized | {name: flags["normalized"] for name, flags in added.items() if name in normalized}
    wanted = {name: value and not special[name] for name, value in wanted.items()}
    if wanted != normalized:
        raw = json.loads(content)
        for token in raw["added_tokens"]:
            token["normalized"] = wanted[token["content"]]
        tok = library.Tokenizer.from_str(json.dumps(raw))
    return _set_qwen2_steps(tok, library)


def _set_qwen2_steps(tok, library):
    """Gives a BPE tokenizer the steps of Qwen2: NFC, split, and the bytes of the result."""
    tok.normalizer = library.normalizers.NFC()
    tok.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(QWEN2_SPLIT), behavior="isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = library.decoders.ByteLevel()
    return tok


def _open_sentencepiece(path):
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(f"reading {path} needs sentencepiece: pip install sentencepiece") from None
    content = read_bytes(path, "vocabulary")
    if not content:
        raise ValueError(f"{path} is not a SentencePiece model: it is empty")
    with _library_errors(f"{path} is not a SentencePiece model"):
        return sentencepiece.SentencePieceProcessor(model_proto=content)


def _import_tokenizers(path):
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"reading {path} needs tokenizers: pip install tokenizers") from None
    return tokenizers


@contextlib.contextmanager
def _library_errors(what):
    """Inside its ``with`` block, whatever a library raises is a ValueError that begins with ``what``.

    `tokenizers` raises plain Exceptions, and its panics are not even those.
    """
    try:
        yield
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001
        raise ValueError(f"{what}: {' '.join(str(error).split())[:200]}") from None
