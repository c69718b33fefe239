"""Text to token ids and back: three kinds of tokenizer files behind one class.

    tokenizer.json              read by the `tokenizers` library: bytes (GPT-2, Qwen2), ▁ (Llama), or plain words
    vocab.json + merges.txt     the byte-level BPE of Qwen2, built here through `tokenizers`
    tokenizer.model             a SentencePiece model

The way back goes through bytes. Every id stands for a few bytes of UTF-8, perhaps for a part of a
character only; an answer is the bytes of its ids in a row. So streaming needs no second look at
what came before: ``StreamDecoder`` holds back the one to three bytes of an unfinished character and
nothing else, and ``decode`` is the same decoder, run once.

Test: ``pytest tests/test_tokenizer.py``
"""

import codecs
import json
import math
import operator
import re
from dataclasses import dataclass
from pathlib import Path

import torch

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")

# Qwen2 cuts text before BPE: English endings, words with one sign in front, single digits, runs of signs, white space.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The system text that a Jinja template falls back on: a quoted string that runs from the marker of the
# system block to its end. The text may hold \-escapes but not the quote that opened the string; where the
# text comes from the messages, the string ends right after `system\n` and there is no match.
SYSTEM_TEXT = re.compile(r"""(['"])<\|im_start\|>system(?:\n|\\n)((?:\\.|(?!\1)[^\\])*?)<\|im_end\|>""", re.DOTALL)

# Names like <|user|> or <s>: SentencePiece does not say which pieces were declared and which were learned.
MARKUP = re.compile(r"<[^<>\s]+>")


def _byte_of_char():
    """GPT-2's alphabet: every byte is a visible character, the invisible ones moved up to U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(moved)}


BYTE_OF_CHAR = _byte_of_char()


@dataclass(frozen=True)
class Encoding:
    """What ``tokenizer(text)`` gives: ids as a list, or as a tensor [1, S] with ``return_tensors="pt"``."""

    input_ids: list | torch.Tensor


class Tokenizer:
    """A vocabulary with its special tokens; ``load_tokenizer`` makes it."""

    def __init__(self, backend, settings, chat_template):
        self._backend = backend
        self.special_ids = frozenset(backend.special_ids)
        self.leading_spaces = backend.leading_spaces
        names = {role: _content(settings.get(role)) for role in ROLES}
        ids = backend.role_ids | {role: backend.id_of(name) for role, name in names.items() if name is not None}
        self.bos_token_id = ids.get("bos_token")
        self.eos_token_id = ids.get("eos_token")
        self.pad_token_id = ids.get("pad_token")
        self.adds_bos = bool(settings.get("add_bos_token", self.bos_token_id in backend.added_in_front))
        if self.adds_bos and self.bos_token_id is None:
            raise ValueError("tokenizer_config.json: add_bos_token is true, but there is no bos_token")
        self.system_prompt = _system_text(chat_template)

    def __len__(self):
        return self._backend.size

    def __contains__(self, token_id):
        """Whether an id stands for a token; below ``len`` there may be holes."""
        return self._bytes(token_id) is not None

    def encode(self, text):
        """The ids of a text as a list; names of special tokens in it become those tokens.

        Raises: ValueError where the text holds half of a surrogate pair, which has no UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid Unicode at character {error.start}: {error.reason}") from None
        return self._backend.encode(text)

    def __call__(self, text, return_tensors=None):
        """``encode`` with the BOS token in front where this tokenizer wants one; ``.input_ids`` has the ids.

        Shapes: a list of S ints; [1, S] long with ``return_tensors="pt"``.
        """
        if return_tensors not in (None, "pt"):
            raise ValueError(f"return_tensors must be None or 'pt', got {return_tensors!r}")
        ids = self.encode(text)
        if self.adds_bos and ids[:1] != [self.bos_token_id]:
            ids = [self.bos_token_id, *ids]
        return Encoding(ids if return_tensors is None else torch.tensor([ids], dtype=torch.long))

    def decode(self, ids, skip_special_tokens=False):
        """The text of a row of ids (a list or a 1-D tensor); bytes that are no UTF-8 become U+FFFD.

        Raises: ValueError for an id outside the vocabulary.
        """
        stream = StreamDecoder(self, skip_special_tokens)
        return stream.push(ids) + stream.flush()

    def id_of(self, token):
        """The id of one whole token, None where the vocabulary has none of that name."""
        return self._backend.id_of(token)

    def piece(self, token_id):
        """The bytes that one id stands for.

        Raises: ValueError for an id outside the vocabulary.
        """
        found = self._bytes(token_id)
        if found is None:
            raise ValueError(f"token id {token_id} is outside the vocabulary of {len(self)} tokens")
        return found

    def _bytes(self, token_id):
        return self._backend.piece(token_id) if token_id >= 0 else None


class StreamDecoder:
    """Turns ids into text as they come: what is given out never changes, and no character comes in halves.

    All pieces and the flush joined are ``decode`` of all ids. The work for an id does not grow with
    what came before it.
    """

    def __init__(self, tokenizer, skip_special_tokens=True):
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._spaces = tokenizer.leading_spaces  # how many pieces may still lose the space in front

    def push(self, ids):
        """Takes the next ids and gives the text that they complete, perhaps none."""
        return self._utf8.decode(b"".join(map(self._piece, map(operator.index, ids))))

    def flush(self):
        """The end of the text: U+FFFD for a character that was never finished, else nothing."""
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


def load_tokenizer(folder):
    """The tokenizer of a checkpoint folder, None where it has no tokenizer files.

    Special tokens come from the tokenizer file, ``tokenizer_config.json``, ``special_tokens_map.json``
    and ``added_tokens.json``, as Hugging Face writes them.

    Raises: ValueError where a file is broken, ids contradict each other, or the library that reads it is missing.
    """
    folder = Path(folder)
    single, vocab, model = (folder / name for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))
    if not (single.is_file() or vocab.is_file() or model.is_file()):
        return None
    settings = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    try:
        added = _added_tokens(_read_json(folder / "added_tokens.json"), settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: special tokens are not written as Hugging Face does: {error!r}") from None
    if single.is_file():
        backend = _Bpe(_open_single(single), added, single)
    elif vocab.is_file():
        backend = _Bpe(_open_qwen2(vocab, folder / "merges.txt", added), added, vocab)
    else:
        backend = _SentencePiece(model, added)
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text(encoding="utf-8") if jinja.is_file() else settings.get("chat_template")
    return Tokenizer(backend, settings, template)


class _Bpe:
    """A tokenizer of the `tokenizers` library, with the bytes of each of its tokens."""

    def __init__(self, tok, added, path):
        from tokenizers import AddedToken

        tok.no_truncation()  # both may have been saved in the file
        tok.no_padding()
        known = {token.content for token in tok.get_added_tokens_decoder().values()}
        for name, flags in added.items():
            if name not in known:
                tok.add_tokens([AddedToken(name, **{k: v for k, v in flags.items() if k != "id"})])
            want, got = flags["id"], tok.token_to_id(name)
            if want not in (None, got):
                raise ValueError(f"{path}: {name} has the id {got}, but tokenizer_config.json says {want}")
        self._tok = tok
        self._added = {i: token.content.encode() for i, token in tok.get_added_tokens_decoder().items()}
        self.special_ids = {i for i, token in tok.get_added_tokens_decoder().items() if token.special}
        self.special_ids |= {tok.token_to_id(name) for name, flags in added.items() if flags["special"]}
        self.added_in_front = tok.encode("").ids[:1]
        self.role_ids = {}  # the file does not say
        self.size = max(tok.get_vocab_size(), *(i + 1 for i in self._added), 0)
        # Which alphabet the tokens are written in is asked of the decoder itself.
        if tok.decoder is None:
            self._bytes_of, self.leading_spaces = _word, 1
        elif tok.decoder.decode(["a", "Ġb"]) == "a b":
            self._bytes_of, self.leading_spaces = _byte_level, 0
        elif tok.decoder.decode(["a", "▁b"]) == "a b":
            self._bytes_of, self.leading_spaces = _metaspace, _leading_spaces(tok.decoder.decode)
        else:
            raise ValueError(f"{path}: its {type(tok.decoder).__name__} decoder is not one that can be streamed here")

    def encode(self, text):
        return self._tok.encode(text, add_special_tokens=False).ids

    def id_of(self, token):
        return self._tok.token_to_id(token)

    def piece(self, token_id):
        name = self._tok.id_to_token(token_id) if token_id < 2**32 else None
        return None if name is None else self._added.get(token_id) or self._bytes_of(name)


class _SentencePiece:
    """A SentencePiece model, and tokens that were added behind its vocabulary."""

    added_in_front = ()

    def __init__(self, path, added):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError(f"reading {path} needs sentencepiece: pip install sentencepiece") from None
        try:
            model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError as error:
            raise ValueError(f"{path} is no SentencePiece model: {_one_line(error)}") from None
        self._model, self._known = model, model.get_piece_size()
        names = {model.id_to_piece(i): i for i in range(self._known)}
        # What the model itself does not find in a text: its control pieces, and the tokens added behind.
        self._extra = {name: i for name, i in names.items() if model.is_control(i)}
        declared = [i for name, i in names.items() if MARKUP.fullmatch(name) and not model.is_byte(i)]
        self.special_ids = {*declared, *self._extra.values(), model.unk_id()}
        self.size = self._known
        for name, flags in added.items():
            got = names.get(name, self.size)
            if flags["id"] not in (None, got):
                raise ValueError(f"{path}: {name} has the id {got}, but tokenizer_config.json says {flags['id']}")
            if got == self.size:
                self._extra[name], self.size = got, self.size + 1
            if flags["special"]:
                self.special_ids.add(got)
        self._added = {i: name for name, i in self._extra.items() if i >= self._known}
        longest_first = sorted(self._extra, key=len, reverse=True)
        self._extra_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.leading_spaces = _leading_spaces(model.decode_pieces)
        own = {"bos_token": model.bos_id(), "eos_token": model.eos_id(), "pad_token": model.pad_id()}
        self.role_ids = {role: i for role, i in own.items() if i >= 0}

    def encode(self, text):
        ids, start = [], 0
        for match in self._extra_pattern.finditer(text):
            ids += [*self._model.encode(text[start : match.start()]), self._extra[match.group()]]
            start = match.end()
        return ids + self._model.encode(text[start:])

    def id_of(self, token):
        found = self._extra.get(token, self._model.piece_to_id(token))
        return found if found >= self._known or self._model.id_to_piece(found) == token else None

    def piece(self, token_id):
        if token_id >= self._known:
            return self._added[token_id].encode() if token_id in self._added else None
        if self._model.is_control(token_id):
            return b""
        if self._model.is_unknown(token_id):
            return self._model.decode([token_id]).encode()
        return _metaspace(self._model.id_to_piece(token_id))


def _word(name):
    """The bytes of a token that is a word of its own."""
    return b" " + name.encode()


def _byte_level(name):
    """The bytes of a token in GPT-2's alphabet."""
    return bytes(BYTE_OF_CHAR[c] for c in name) if BYTE_OF_CHAR.keys() >= set(name) else name.encode()


def _metaspace(name):
    """The bytes of a SentencePiece token: ▁ is a space, <0x41> one byte."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", name):
        return bytes([int(name[3:5], 16)])
    return name.replace("▁", " ").encode()


def _leading_spaces(decode_pieces):
    """How many pieces at the start of a text lose the space in front of them: none, one, or all that begin so."""
    return (0, 1, math.inf)[len("  x") - len(decode_pieces(["▁", "▁", "x"]))]


def _need_tokenizers(path):
    try:
        import tokenizers
    except ImportError:
        raise ValueError(f"reading {path} needs tokenizers: pip install tokenizers") from None
    return tokenizers


def _open_single(path):
    library = _need_tokenizers(path)
    try:
        return library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer file: {_one_line(error)}") from error


def _open_qwen2(vocab_path, merges_path, added):
    """Qwen2's tokenizer from its two files: NFC, its own cuts, then BPE on bytes."""
    library = _need_tokenizers(vocab_path)
    if not merges_path.is_file():
        raise ValueError(f"{vocab_path} needs merges.txt beside it")
    ids = {name: flags["id"] for name, flags in added.items() if flags["id"] is not None}
    paths, bpe = (str(vocab_path), str(merges_path)), library.models.BPE
    try:
        tok = library.Tokenizer(bpe.from_file(*paths))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{vocab_path} and merges.txt are no BPE vocabulary: {_one_line(error)}") from error
    for name, i in ids.items():
        if (owner := tok.id_to_token(i)) not in (None, name):
            raise ValueError(f"{vocab_path}: the id {i} is {owner!r}, but tokenizer_config.json gives it to {name}")
    behind = sorted(i for name, i in ids.items() if tok.token_to_id(name) != i)
    size = tok.get_vocab_size()
    if behind != [*range(size, size + len(behind))]:  # the library would count them without the holes
        vocab, merges = bpe.read_file(*paths)
        tok = library.Tokenizer(bpe(vocab=ids | vocab, merges=merges))
    tok.normalizer = library.normalizers.NFC()
    tok.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(QWEN2_SPLIT), behavior="isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = library.decoders.ByteLevel()
    return tok


def _read_json(path):
    """The object in a JSON file, empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if type(found) is not dict:
        raise ValueError(f"{path} holds {type(found).__name__}, expected a JSON object")
    return found


def _content(token):
    """The name of a special token, which is written as a string or as an object."""
    return token["content"] if isinstance(token, dict) else token


def _added_tokens(extra_ids, settings):
    """name -> its id (None where no file gives one) and its flags, in the order of the ids."""
    flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
    added = {name: dict.fromkeys(flags, False) | {"id": i} for name, i in extra_ids.items()}
    for i, entry in settings.get("added_tokens_decoder", {}).items():
        added[entry["content"]] = {flag: entry.get(flag, False) for flag in flags} | {"id": int(i)}
    named = [settings.get(role) for role in ROLES] + (settings.get("additional_special_tokens") or [])
    for name in filter(None, map(_content, named)):
        added[name] = added.get(name, dict.fromkeys(flags, False) | {"id": None}) | {"special": True}
    return dict(sorted(added.items(), key=lambda item: math.inf if item[1]["id"] is None else item[1]["id"]))


def _system_text(chat_template):
    """The system text written out in a chat template, None where there is none."""
    if isinstance(chat_template, list):  # several templates, each with a name
        named = {entry["name"]: entry["template"] for entry in chat_template}
        chat_template = named.get("default")
    match = SYSTEM_TEXT.search(chat_template or "")
    if match is None:
        return None
    return re.sub(r"\\(.)", lambda escape: {"n": "\n", "t": "\t"}.get(escape[1], escape[1]), match[2], flags=re.DOTALL)


def _one_line(error):
    return " ".join(str(error).split())
