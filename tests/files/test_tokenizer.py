"""Small tokenizers of every kind, trained here; decoding and streaming against the libraries themselves."""

import io
import json
import random
import re
import sys
import unicodedata

import pytest
import torch
from hostile import as_json, refusal, variants
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vita_ref.files.backends import QWEN2_SPLIT
from vita_ref.files.tokenizer import StreamDecoder, load_tokenizer
from vita_ref.files.values import LIMITS

tokenizers = pytest.importorskip("tokenizers")
sentencepiece = pytest.importorskip("sentencepiece")

CORPUS = [
    "A cat sat on the mat, and it isn't what you'd call a hat; they're 12 345 hats!",
    "Hello world, what is in the picture?  Two dogs.\n\nSay   it again.",
    "一只猫坐在垫子上。你好，世界！图片里有什么？",
    "Ein Mädchen läuft über die Straße 😀 👩‍👩‍👧 🇩🇪",
] * 3
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KINDS = ["single", "qwen2", "sentencepiece", "metaspace", "words"]
few = settings(max_examples=60, deadline=None)
texts = st.text(st.characters(codec="utf-8") | st.sampled_from("猫😀👩\u200d🇩é e\n "), max_size=24)


def train_bpe():
    library = tokenizers
    tok = library.Tokenizer(library.models.BPE())
    tok.normalizer = library.normalizers.NFC()
    split = library.pre_tokenizers.Split(library.Regex(QWEN2_SPLIT), behavior="isolated")
    bytes_ = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = library.pre_tokenizers.Sequence([split, bytes_])
    tok.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    return tok


def train_sentencepiece(**options):
    model = io.BytesIO()
    options |= {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    options |= {
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "user_defined_symbols": ["<|user|>", "<|assistant|>", "\n"],
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **options)
    return model.getvalue()


def build_metaspace():
    """A tokenizer.json as Llama's conversion writes it: ▁ for spaces, bytes as <0x41>."""
    library = tokenizers
    words = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}}
    words |= {c: len(words) + i for i, c in enumerate("▁acht猫")}
    tok = library.Tokenizer(library.models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tok.normalizer = library.normalizers.Sequence(
        [library.normalizers.Prepend("▁"), library.normalizers.Replace(" ", "▁")]
    )
    steps = (library.decoders.Replace("▁", " "), library.decoders.ByteFallback(), library.decoders.Fuse())
    tok.decoder = library.decoders.Sequence([*steps, library.decoders.Strip(" ", 1, 0)])
    return tok


def build_words():
    """A tokenizer.json of whole words, which has no decoder."""
    vocab = {w: i for i, w in enumerate(["[UNK]", "a", "cat", "猫", "sat"])}
    tok = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tok


def qwen2_settings(**more):
    return {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None} | more


def write_settings(folder, settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("tokenizers")
    paths = {kind: root / kind for kind in KINDS}
    for folder in paths.values():
        folder.mkdir()
    tok = train_bpe()
    tok.model.save(str(paths["qwen2"]))
    first = tok.get_vocab_size()
    entries = {str(first + i): {"content": name, "special": True} for i, name in enumerate(SPECIAL)}
    entries[str(first + 3)] = {"content": "<tool_é>", "special": False}
    tok.add_special_tokens(SPECIAL)
    tok.add_tokens([tokenizers.AddedToken("<tool_é>", normalized=False)])
    tok.save(str(paths["single"] / "tokenizer.json"))
    write_settings(paths["single"], qwen2_settings())
    write_settings(paths["qwen2"], qwen2_settings(added_tokens_decoder=entries))
    (paths["sentencepiece"] / "tokenizer.model").write_bytes(train_sentencepiece())
    build_metaspace().save(str(paths["metaspace"] / "tokenizer.json"))
    build_words().save(str(paths["words"] / "tokenizer.json"))
    return paths


@pytest.fixture(scope="session")
def loaded(folders):
    return {kind: load_tokenizer(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="session")
def library_decode(folders):
    """The decoder of each library, as an oracle: (ids, skip_special_tokens) -> str."""
    files = {kind: folders["single" if kind == "qwen2" else kind] / "tokenizer.json" for kind in KINDS}
    opened = {kind: tokenizers.Tokenizer.from_file(str(file)) for kind, file in files.items() if file.is_file()}
    decoders = {k: lambda ids, skip, tok=tok: tok.decode(ids, skip_special_tokens=skip) for k, tok in opened.items()}
    model = sentencepiece.SentencePieceProcessor(model_file=str(folders["sentencepiece"] / "tokenizer.model"))
    declared = {model.piece_to_id(name) for name in ("<|user|>", "<|assistant|>")}
    silent = set(filter(model.is_control, range(len(model))))  # they would separate the bytes of a character

    def decode_sentencepiece(ids, skip):
        left_out = silent | declared if skip else silent
        return model.decode([i for i in ids if i not in left_out])

    decoders["sentencepiece"] = decode_sentencepiece
    return decoders


def random_ids(tokenizer, data):
    """Ids as a model with random weights would give them, with broken characters and special tokens."""
    return data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=16))


def one_mark(text):
    """Runs of U+FFFD as one: the libraries do not agree on how many of them a broken character gives."""
    return re.sub("\ufffd+", "\ufffd", text)


# ---- encoding


@few
@given(texts)
@example("they're 2024  apples\r\n\n x 猫A's Äe\u0301 ")
def test_vocab_and_merges_give_the_ids_of_tokenizer_json(loaded, text):
    assert loaded["qwen2"].encode(text) == loaded["single"].encode(text)


def test_vocab_and_merges_are_tokenised_as_transformers_does(folders, loaded):
    transformers = pytest.importorskip("transformers")
    vocab = json.loads((folders["qwen2"] / "vocab.json").read_text())
    merges = (folders["qwen2"] / "merges.txt").read_text().splitlines()[1:]
    second = transformers.Qwen2Tokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges])
    letters = random.Random(1)
    odd = ["".join(letters.choices("ab 1२'s\n\r\t.,!猫😀é\u0301\u200d_", k=20)) for _ in range(100)]
    for text in [*CORPUS, *odd]:
        assert loaded["qwen2"].encode(text) == second(text).input_ids


@few
@given(texts)
def test_byte_level_text_is_decoded_to_its_normal_form(loaded, text):
    ids = loaded["qwen2"].encode(text)
    assert loaded["qwen2"].decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("kind", ["single", "qwen2"])
def test_names_of_special_tokens_in_a_text_are_encoded_as_those_tokens(loaded, kind):
    tokenizer = loaded[kind]
    start, end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
    hi = tokenizer.encode("user\nHi")
    assert tokenizer.encode("<|im_start|>user\nHi<|im_end|>") == [start, *hi, end]
    assert {start, end} <= tokenizer.special_ids
    assert tokenizer.id_of("<tool_é>") not in tokenizer.special_ids


def test_names_of_sentencepiece_symbols_and_control_pieces_are_encoded_as_those_pieces(loaded):
    tokenizer = loaded["sentencepiece"]
    ids = tokenizer.encode("<|user|>a cat</s>")
    assert [ids[1], ids[-1]] == [tokenizer.id_of("<|user|>"), tokenizer.eos_token_id]
    assert set(ids[1:]) & tokenizer.special_ids == {ids[1], ids[-1]}
    assert tokenizer.id_of("\n") not in tokenizer.special_ids  # declared as a symbol, but it is text


@pytest.mark.parametrize("kind", KINDS)
def test_id_of_gives_the_id_of_a_token_and_none_for_other_names(loaded, kind):
    tokenizer = loaded[kind]
    known = {
        "single": ("<|im_end|>", "<|im_end|>"),
        "qwen2": ("Ġcat", " cat"),
        "sentencepiece": ("<|user|>", "<|user|>"),
        "metaspace": ("猫", "猫"),
        "words": ("cat", " cat"),
    }
    name, text = known[kind]
    assert tokenizer.piece(tokenizer.id_of(name)) == text.encode()
    assert tokenizer.id_of("never a token") is None


# ---- decoding


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_decode_gives_what_the_library_decodes(loaded, library_decode, kind, data):
    tokenizer, skip = loaded[kind], data.draw(st.booleans())
    if kind == "metaspace" or data.draw(st.booleans()):  # its library drops whole characters next to a broken one
        ids = tokenizer.encode(data.draw(texts))
    else:
        ids = random_ids(tokenizer, data)
    # Three tokens are left out. At the start of a text SentencePiece keeps the space of <unk>, which is " ⁇ ", and that
    # of <0x20>, which no encoder puts there; `tokenizers` takes the é of the added token for the byte E9.
    left_out = [tokenizer.id_of(name) for name in ("<unk>", "<0x20>", "<tool_é>")]
    ids = [i for i in ids if i not in left_out]
    assert one_mark(tokenizer.decode(ids, skip_special_tokens=skip)) == one_mark(library_decode[kind](ids, skip))


@pytest.mark.parametrize("remove_extra", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
def test_leading_spaces_are_those_of_sentencepiece(tmp_path, remove_extra, prefix):
    model = train_sentencepiece(remove_extra_whitespaces=remove_extra, add_dummy_prefix=prefix)
    (tmp_path / "tokenizer.model").write_bytes(model)
    tokenizer = load_tokenizer(tmp_path)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    space, cat, pad = (tokenizer.id_of(x) for x in ("▁", "▁cat", "<pad>"))
    for ids in ([space, space, cat], [cat, cat], [space, cat], [cat, space], [pad, space, cat], [space]):
        assert tokenizer.decode(ids) == oracle.decode(ids)


def test_an_added_token_with_a_letter_beyond_ascii_is_decoded_unchanged(loaded):
    for kind in ("single", "qwen2"):
        ids = loaded[kind].encode("a<tool_é>b")
        assert len(ids) == 3
        assert loaded[kind].decode(ids, skip_special_tokens=True) == "a<tool_é>b"


@pytest.mark.parametrize("kind", ["single", "qwen2", "sentencepiece"])
def test_special_tokens_are_left_out_if_asked_for(loaded, kind):
    tokenizer = loaded[kind]
    mark = "<|user|>" if kind == "sentencepiece" else "<|im_start|>"
    ids = tokenizer.encode(f"{mark}a cat")
    assert tokenizer.decode(ids) == f"{mark}a cat"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a cat"
    assert tokenizer.decode(torch.tensor(ids), skip_special_tokens=True) == "a cat"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [-200, -1, "end", 2**40])
def test_an_id_outside_the_vocabulary_is_refused(loaded, kind, wrong):
    tokenizer = loaded[kind]
    wrong = len(tokenizer) if wrong == "end" else wrong
    for call in (tokenizer.decode, StreamDecoder(tokenizer).push):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {len(tokenizer)} tokens"):
            call([0, wrong])


# ---- streaming


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_a_streamed_text_is_the_decoded_text_however_it_is_cut(loaded, kind, data):
    tokenizer = loaded[kind]
    ids = tokenizer.encode(data.draw(texts)) if data.draw(st.booleans()) else random_ids(tokenizer, data)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    stream = StreamDecoder(tokenizer)
    pieces = [stream.push(ids[a:b]) for a, b in zip([0, *cuts], [*cuts, len(ids)])] + [stream.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["single", "qwen2", "sentencepiece", "metaspace"])
@few
@given(text=texts.filter(lambda text: "\ufffd" not in text))
@example(text="👩‍👩‍👧 猫 🇩🇪")
def test_no_streamed_character_is_split(loaded, kind, text):
    stream = StreamDecoder(loaded[kind])
    pieces = [stream.push([i]) for i in loaded[kind].encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert stream.flush() == ""


def test_an_unfinished_character_is_held_back_and_replaced_at_the_end(loaded):
    tokenizer = loaded["qwen2"]
    ids = [tokenizer.id_of(c) for c in "ðŁĺĢ"]  # the four bytes of an emoji
    stream = StreamDecoder(tokenizer)
    assert [stream.push([i]) for i in ids] == ["", "", "", "😀"]
    assert [stream.push(ids[:3]), stream.flush()] == ["", "\ufffd"]


def test_a_long_stream_looks_up_each_id_once(loaded):
    class Counting:
        def __init__(self, tokenizer):
            self.special_ids, self.leading_spaces, self.calls = tokenizer.special_ids, tokenizer.leading_spaces, 0
            self._piece = tokenizer.piece

        def piece(self, token_id):
            self.calls += 1
            return self._piece(token_id)

    counting = Counting(loaded["qwen2"])
    stream, ids = StreamDecoder(counting), loaded["qwen2"].encode("猫 sat 😀 " * 50)
    for i in ids:
        stream.push([i])
    assert counting.calls == len(ids)


# ---- the other files of a folder


def test_bos_eos_and_pad_are_read_from_strings_and_from_objects(loaded):
    for kind in ("single", "qwen2"):
        tokenizer = loaded[kind]
        assert tokenizer.bos_token_id is None
        assert tokenizer.eos_token_id == tokenizer.id_of("<|im_end|>")
        assert tokenizer.pad_token_id == tokenizer.id_of("<|endoftext|>")
    roles = loaded["sentencepiece"]
    assert (roles.pad_token_id, roles.bos_token_id, roles.eos_token_id) == (0, 2, 3)


def copy(folder, target, settings):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    write_settings(target, settings)
    return target


def test_ids_are_lists_or_tensors_and_bos_is_added_only_if_the_settings_say_so(folders, loaded, tmp_path):
    plain = loaded["qwen2"]
    assert plain("a cat").input_ids == plain.encode("a cat")
    settings = json.loads((folders["qwen2"] / "tokenizer_config.json").read_text())
    tokenizer = load_tokenizer(
        copy(folders["qwen2"], tmp_path, settings | {"bos_token": "<|endoftext|>", "add_bos_token": True})
    )
    assert tokenizer("a cat").input_ids == [tokenizer.bos_token_id, *plain.encode("a cat")]
    assert tokenizer.encode("a cat") == plain.encode("a cat")
    tensor = tokenizer("a cat", return_tensors="pt").input_ids
    assert tensor.dtype == torch.long
    assert tensor.tolist() == [tokenizer("a cat").input_ids]
    with pytest.raises(ValueError, match="return_tensors must be None or 'pt', got 'np'"):
        tokenizer("a", return_tensors="np")


@pytest.mark.parametrize("kind", ["single", "sentencepiece"])
def test_tokens_that_only_the_settings_name_get_the_ids_after_the_vocabulary(folders, loaded, tmp_path, kind):
    size = len(loaded[kind])
    entries = {
        str(size): {"content": "<|new|>", "special": True},
        str(size + 1): {"content": "+tool", "special": False},
    }
    more = {"added_tokens_decoder": entries, "additional_special_tokens": ["<|last|>"]}
    tokenizer = load_tokenizer(copy(folders[kind], tmp_path, more))
    assert [tokenizer.id_of(t) for t in ("<|new|>", "+tool", "<|last|>")] == [size, size + 1, size + 2]
    assert len(tokenizer) == size + 3
    ids = tokenizer.encode("a<|new|>+tool<|last|>")
    assert ids[-3:] == [size, size + 1, size + 2]
    assert tokenizer.decode(ids) == "a<|new|>+tool<|last|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a+tool"


def test_the_length_is_one_more_than_the_highest_id_if_ids_are_not_contiguous(folders, loaded, tmp_path):
    raw = json.loads((folders["single"] / "tokenizer.json").read_text())
    entry = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    raw["added_tokens"].append(entry | {"id": len(loaded["single"]) + 40, "content": "<|far|>", "special": True})
    raw["model"]["vocab"]["<|far|>"] = len(loaded["single"]) + 40
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(tmp_path)
    assert len(tokenizer) == len(loaded["single"]) + 41
    assert tokenizer.decode([len(tokenizer) - 1]) == "<|far|>" and tokenizer.encode("<|far|>") == [len(tokenizer) - 1]


def test_added_tokens_json_and_special_tokens_map_json_are_read_too(folders, tmp_path):
    source = folders["qwen2"]
    size = len(json.loads((source / "vocab.json").read_text()))
    target = copy(source, tmp_path, {})
    ids = {"<|im_start|>": size + 5, "<|im_end|>": size + 7}  # not contiguous
    (target / "added_tokens.json").write_text(json.dumps(ids))
    (target / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = load_tokenizer(target)
    assert tokenizer.encode("<|im_start|>a<|im_end|>")[::2] == [size + 5, size + 7]
    assert tokenizer.eos_token_id == size + 7
    assert tokenizer.special_ids == {size + 7}
    assert [i for i in range(-1, size + 9) if i not in tokenizer] == [-1, *range(size, size + 5), size + 6, size + 8]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tokenizer.decode([size + 6])


@pytest.mark.parametrize("kind", ["single", "qwen2", "sentencepiece"])
def test_ids_that_contradict_each_other_are_refused(folders, tmp_path, kind):
    entries = {"5": {"content": "<|new|>", "special": True}}
    with pytest.raises(ValueError, match=r"<\|new\|>' has the id .* says 5|the id 5 is .* gives it to '<\|new\|>"):
        load_tokenizer(copy(folders[kind], tmp_path, {"added_tokens_decoder": entries}))


def test_padding_and_truncation_saved_in_the_file_are_not_used(folders, loaded, tmp_path):
    tok = tokenizers.Tokenizer.from_file(str(folders["single"] / "tokenizer.json"))
    tok.enable_truncation(3)
    tok.enable_padding(length=64)
    tok.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(CORPUS[0]) == loaded["single"].encode(CORPUS[0])


QWEN2 = (
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{%- if messages[0]['role'] == 'system' %}"
    "{{- messages[0]['content'] }}{%- endif %}{{- '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{{- '<|im_start|>system\\nYou\\'re Qwen. {boxed} \"it\".\\nBe kind.<|im_end|>\\n' }}"
)


@pytest.mark.parametrize(
    "template, text",
    [
        (QWEN2, "You are a helpful assistant."),
        (QWEN25, 'You\'re Qwen. {boxed} "it".\nBe kind.'),
        ([{"name": "tool", "template": ""}, {"name": "default", "template": QWEN2}], "You are a helpful assistant."),
        ("{{ '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}", None),
        (None, None),
    ],
)
def test_the_default_system_text_is_found_in_the_chat_template(folders, tmp_path, template, text):
    target = copy(folders["single"], tmp_path, {"chat_template": template})
    assert load_tokenizer(target).system_prompt == text
    (target / "chat_template.jinja").write_text(QWEN25)
    assert load_tokenizer(target).system_prompt == 'You\'re Qwen. {boxed} "it".\nBe kind.'


# ---- errors


def test_a_folder_without_tokenizer_files_has_none(tmp_path):
    write_settings(tmp_path, {})
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"])
def test_a_broken_file_is_named_in_one_line(folders, tmp_path, name):
    kind = {"tokenizer.model": "sentencepiece", "vocab.json": "qwen2"}.get(name, "single")
    copy(folders[kind], tmp_path, {})
    (tmp_path / name).write_text("{ broken")
    with pytest.raises(ValueError, match=name) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_a_vocabulary_without_merges_is_refused(folders, tmp_path):
    copy(folders["qwen2"], tmp_path, {})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"needs merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("settings", [{"added_tokens_decoder": {"5": {}}}, {"eos_token": {}}])
def test_special_tokens_of_another_form_are_refused(folders, tmp_path, settings):
    with pytest.raises(ValueError, match="not written as Hugging Face does"):
        load_tokenizer(copy(folders["single"], tmp_path, settings))


@pytest.mark.parametrize("kind, library", [("single", "tokenizers"), ("sentencepiece", "sentencepiece")])
def test_a_library_that_is_not_installed_is_named(folders, monkeypatch, kind, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ValueError, match=f"pip install {library}"):
        load_tokenizer(folders[kind])


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path):
    tok = build_words()
    tok.decoder = tokenizers.decoders.WordPiece()
    tok.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="WordPiece decoder"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(loaded, kind):
    with pytest.raises(ValueError, match="not valid Unicode at character 2"):
        loaded[kind].encode("ab\ud83d")


# ---- hostile files

SETTINGS = qwen2_settings(
    tokenizer_class="Qwen2Tokenizer",
    add_bos_token=False,
    additional_special_tokens=["<|a|>", {"content": "<|b|>"}],
    chat_template=[{"name": "default", "template": QWEN2}],
    added_tokens_decoder={"400": {"content": "<|endoftext|>", "special": True, "normalized": False}},
)
HOSTILE = "a cat 猫 e\u0301<|im_end|>\u0338"
some = settings(max_examples=50, deadline=None, derandomize=True)


def used(folder):
    """Loads a tokenizer and uses it; None if there is none."""
    tokenizer = load_tokenizer(folder)
    return tokenizer and tokenizer.decode(tokenizer(HOSTILE).input_ids)


@some
@given(variants(SETTINGS))
@example(SETTINGS | {"bos_token": 5})
@example(SETTINGS | {"chat_template": [1]})
@example(SETTINGS | {"add_bos_token": "false"})
@example(SETTINGS | {"additional_special_tokens": "<|a|>"})
@example(SETTINGS | {"added_tokens_decoder": [1]})
def test_settings_are_read_or_refused(folders, tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("settings")
    (folder / "tokenizer.json").write_bytes((folders["single"] / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(as_json(content))
    refusal(used, folder)


def test_the_settings_that_are_changed_above_are_read(folders, tmp_path):
    assert load_tokenizer(copy(folders["single"], tmp_path, SETTINGS)).system_prompt == "You are a helpful assistant."


@some
@given(st.sampled_from(["single", "metaspace", "words"]), st.data())
def test_a_tokenizer_json_is_read_or_refused(folders, tmp_path_factory, kind, data):
    raw = json.loads((folders[kind] / "tokenizer.json").read_text())
    raw["model"]["vocab"] = dict([*raw["model"]["vocab"].items()][:300])  # fewer places to draw from
    raw["model"]["merges"] = []
    if kind == "words":
        del raw["model"]["merges"]
    folder = tmp_path_factory.mktemp("json")
    (folder / "tokenizer.json").write_text(as_json(data.draw(variants(raw))))
    refusal(used, folder)


@some
@given(st.data())
def test_a_sentencepiece_model_is_read_or_refused(folders, tmp_path_factory, data):
    content = bytearray((folders["sentencepiece"] / "tokenizer.model").read_bytes())
    for _ in range(data.draw(st.integers(0, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    refusal(used, folder)


def test_an_empty_sentencepiece_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizer\.model is not a SentencePiece model: it is empty"):
        load_tokenizer(tmp_path)


def test_words_that_a_vocabulary_without_unk_does_not_have_are_refused(tmp_path):
    raw = json.loads(build_words().to_str())
    raw["model"]["unk_token"] = "[NONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a cat") == [1, 2]
    with pytest.raises(ValueError, match="cannot encode 'a dog'; a vocabulary of words needs an unk_token"):
        tokenizer.encode("a dog")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bos_token": 5}, "bos_token must be a text or an object with a text as content, got 5"),
        ({"chat_template": [1]}, "a chat_template that is a list must have objects with name and template"),
        ({"chat_template": 5}, "chat_template must be a text, got 5"),
        ({"add_bos_token": "false"}, "add_bos_token must be true or false, got 'false'"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "the id of 'a' must be a number, got 'x'"),
        ({"added_tokens_decoder": {"5": {"content": "a", "special": "no"}}}, "special of 'a' must be true or false"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_by_name(folders, tmp_path, settings, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        load_tokenizer(copy(folders["single"], tmp_path, settings))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"])
def test_a_file_above_its_limit_is_refused(folders, tmp_path, monkeypatch, name):
    kind = {"tokenizer.model": "sentencepiece", "vocab.json": "qwen2"}.get(name, "single")
    copy(folders[kind], tmp_path, {"a": "x" * 200})
    monkeypatch.setitem(LIMITS, "index" if name == "tokenizer_config.json" else "vocabulary", 100)
    with pytest.raises(ValueError, match=re.escape(name) + " is larger than 100 bytes"):
        load_tokenizer(tmp_path)


# ---- Qwen2Tokenizer


def of_class(folders, tmp_path, name, **changes):
    """The single-file tokenizer with changes of its JSON, and a tokenizer_class."""
    raw = json.loads((folders["single"] / "tokenizer.json").read_text()) | changes
    for token in raw["added_tokens"]:
        token["normalized"] = True  # as some conversions write it
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    write_settings(tmp_path, qwen2_settings(**({"tokenizer_class": name} if name else {})))
    return load_tokenizer(tmp_path)


@few
@given(texts)
@example("cafe\u0301")
@example("<|im_end|>\u0338")
@example("e\u0301<|im_start|>e\u0301")
def test_a_qwen2_tokenizer_without_a_normalizer_composes_characters(folders, loaded, tmp_path_factory, text):
    made = of_class(folders, tmp_path_factory.mktemp("qwen2"), "Qwen2Tokenizer", normalizer=None, pre_tokenizer=None)
    assert made.encode(text) == loaded["single"].encode(text)


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "Qwen2TokenizerFast"])
def test_special_tokens_of_qwen2_are_found_before_the_text_is_composed(folders, tmp_path, name):
    made = of_class(folders, tmp_path, name, normalizer=None)
    stop = made.id_of("<|im_end|>")
    assert made.encode("<|im_end|>\u0338") == [stop, *made.encode("\u0338")]
    assert made.encode("cafe\u0301") == made.encode("café")


def test_a_tokenizer_of_another_class_keeps_its_own_steps(folders, tmp_path):
    made = of_class(folders, tmp_path, None, normalizer=None)
    assert made.encode("cafe\u0301") != made.encode("café")
