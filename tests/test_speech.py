"""Speech: golden tokens and streams, the options, the stream against the sound made at once, and what a folder holds."""

import copy
import functools
import json
import shutil
from collections import Counter
from unittest.mock import patch

import pytest
import torch
from conftest import GOLDEN, case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tools.convert_speech import convert, main
from vita_ref.config import CodecConfig, DecoderConfig, SpeechConfig
from vita_ref.files.speech import read_speech_config
from vita_ref.speech import Speech, TokenOptions
from vita_ref.voice.vocoder import split_quiet

SPEECH = GOLDEN / "tts"
TABLE = json.loads((SPEECH / "cases/cases.json").read_text())
WIDTH, CODES = 24, 23
BOS, SOS, EOS, PAD = range(CODES, CODES + 4)
DECODER = SpeechConfig(
    num_codes=CODES,
    num_pre_layers=4,
    decoder=DecoderConfig(
        vocab_size=CODES + 4,
        hidden_size=WIDTH,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=12,
        rope_theta=1e4,
        attention_bias=False,
    ),
)
CODEC = CodecConfig(
    n_codes=CODES,
    global_tokens=(1, 2),
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(5, 4),
    upsample_initial_channel=256,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
)
HOP = 6  # 3 * 2
VOICE = [2, 1]


def build(seed=0, codec=CODEC):
    """A small model with random weights that never predicts the end token."""
    return copy.deepcopy(built(seed, codec))


@functools.lru_cache(4)
def built(seed, codec):
    torch.manual_seed(seed)
    speech = Speech(DECODER, codec).eval().requires_grad_(False)
    for parameter in speech.decoder.parameters():
        parameter.normal_(0, 0.5) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    speech.decoder.out_fnn.bias[EOS] = -1000
    return speech


def text_rows(n, seed=0):
    return torch.randn(n, WIDTH, generator=seeded(seed))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_codes(count):
    return torch.randint(0, CODES, (count,), generator=seeded(count)).tolist()


def stream_of(speech, tokens, **options):
    """The stream for these codec tokens, in place of those of the speech decoder."""
    with patch.object(speech, "tokens", lambda embeds: iter(tokens)):
        return speech.stream(None, **options)


@pytest.fixture(scope="module")
def golden():
    return Speech.from_pretrained(SPEECH)


# ---- tokens


@pytest.mark.parametrize("name, options", [("ar_eos", {}), ("ar_long", {}), ("ar_penalty", {"penalty_window": 20})])
def test_golden_tokens(golden, name, options):
    t = case(name)
    tokens = golden.tokens(t["hidden"][0], max_tokens=TABLE[name].get("max_tokens", 1000), **options)
    assert list(tokens) == t["tokens"][0].tolist()


def slow_tokens(speech, rows, count):
    """The likeliest tokens, each predicted anew from the text and all tokens before it."""
    tokens = [SOS]
    for _ in range(count):
        cache = speech.decoder.new_cache()
        speech.decoder.prefill(speech.decoder.encode_text(rows[None]), cache)
        for token in tokens:
            logits = speech.decoder.step(token, cache)
        tokens.append(int(logits[0, :CODES].argmax()))
    return tokens[1:]


@settings(deadline=None, max_examples=10)
@given(n=st.integers(1, 9), count=st.integers(0, 12), seed=st.integers(0, 1000))
def test_each_token_is_the_likeliest_code_after_the_text_and_the_tokens_before_it(n, count, seed):
    speech, rows = build(seed), text_rows(n, seed)
    assert list(speech.tokens(rows, max_tokens=count)) == slow_tokens(speech, rows, count)


def test_bos_sos_and_pad_are_never_predicted():
    speech = build()
    speech.decoder.out_fnn.bias[[BOS, SOS, PAD]] = 1000.0
    assert all(token < CODES for token in speech.tokens(text_rows(3), top_k=0, max_tokens=20))


def test_the_end_token_ends_the_sentence_and_is_left_out():
    speech = build()
    speech.decoder.out_fnn.bias[EOS] = 1000.0
    assert list(speech.tokens(text_rows(3))) == []
    assert list(speech.stream(text_rows(3))) == []


def test_the_penalty_window_holds_the_last_tokens_and_counts_the_start_token():
    windows = []

    def record(logits, recent, penalty):
        windows.append(recent)
        return logits

    with patch("vita_ref.speech.apply_penalty", record):
        a, b, c, _ = build().tokens(text_rows(3), max_tokens=4, penalty_window=3)
    assert windows == [[SOS], [SOS, a], [SOS, a, b], [a, b, c]]  # quirk: sos is in the window


def test_a_penalty_keeps_a_token_from_following_itself():
    speech = build()
    speech.decoder.out_fnn.weight.zero_()
    speech.decoder.out_fnn.bias[:CODES] = 1.0
    speech.decoder.out_fnn.bias[[4, 7]] = torch.tensor([3.0, 2.9])
    options = {"penalty": 1.5, "max_tokens": 4}
    assert list(speech.tokens(text_rows(2), **options)) == [4, 4, 4, 4]
    assert list(speech.tokens(text_rows(2), penalty_window=1, **options)) == [4, 7, 4, 7]


def test_top_k_draws_among_the_k_likeliest_tokens_with_their_renormalised_probabilities():
    speech = build()
    speech.decoder.out_fnn.weight.zero_()
    speech.decoder.out_fnn.bias[:CODES] = torch.tensor([0.0, 1.0, 0.5] + [-0.5] * 20)
    counts = Counter(speech.tokens(text_rows(2), top_k=2, max_tokens=100, generator=seeded(0)))
    assert set(counts) == {1, 2}
    assert abs(counts[1] / 100 - 0.6225) < 0.15  # e^1 / (e^1 + e^0.5)


def test_the_generator_determines_the_draws():
    speech = build()
    speech.decoder.out_fnn.weight.zero_()
    first, again, other = (
        list(speech.tokens(text_rows(2), top_k=2, max_tokens=100, generator=seeded(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_wide_row_becomes_several_rows():
    speech = build()
    wide = torch.arange(2 * 3.0 * WIDTH).view(2, 3 * WIDTH)
    assert torch.equal(speech.text_rows(wide), torch.arange(6.0 * WIDTH).view(6, WIDTH))
    assert torch.equal(speech.text_rows(wide.view(6, WIDTH)), speech.text_rows(wide))
    assert list(speech.tokens(wide, max_tokens=5)) == list(speech.tokens(wide.view(6, WIDTH), max_tokens=5))


@pytest.mark.parametrize("shape", [(2, WIDTH + 1), (WIDTH,), (0, WIDTH)])
def test_rows_of_another_shape_are_refused_before_the_first_token(shape):
    with pytest.raises(ValueError, match="a multiple of 24"):
        build().tokens(torch.zeros(shape))


def test_the_token_options_have_the_defaults_of_the_interface():
    assert TokenOptions() == TokenOptions(top_k=1, penalty_window=-1, penalty=1.1, max_tokens=1000)


@pytest.mark.parametrize("name, value", [("top_k", -1), ("max_tokens", -1), ("penalty", 0)])
def test_a_token_option_out_of_range_is_refused_before_the_first_token(name, value):
    for method in (build().tokens, build().stream):
        with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
            method(text_rows(2), **{name: value})


def test_an_unknown_token_option_is_refused_before_the_first_token():
    for method in (build().tokens, build().stream):
        with pytest.raises(TypeError, match="temperature"):
            method(text_rows(2), temperature=0.5)


# ---- streams


@pytest.mark.parametrize("row", TABLE["stream"]["table"])
def test_golden_stream(golden, row):
    name = {"long": "ar_long", "eos": "ar_eos"}[row["source"]]
    tokens = case(name)["tokens"][0][: row["max_tokens"]].tolist()
    chunk, padding = row["codec_chunk_size"], row["codec_padding_size"]
    options = {"chunk": chunk, "padding": padding, "window": row["N"], "threshold": row["seg_threshold"]}
    pieces = list(stream_of(golden, tokens, **options))
    assert [len(piece) for piece in pieces] == row["segment_lengths"]
    waveform = case("stream").get(f"wave_{row['source']}_{row['max_tokens']}_{chunk}_{padding}")
    if waveform is not None:
        torch.testing.assert_close(torch.cat(pieces), waveform.flatten(), atol=1e-6, rtol=0)


def expected_lengths(sound, count, chunk, padding, window, threshold):
    """The lengths of a stream's pieces, from the sound of all tokens made at once."""
    lengths, pending, done = [], sound[:0], 0
    while count >= done + chunk + padding:
        piece, pending = split_quiet(pending, sound[done * HOP : (done + chunk) * HOP], window, threshold)
        done += chunk
        if piece is not None:
            lengths.append(len(piece))
    return [*lengths, len(sound) - sum(lengths)] if count else []


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(0, 40),
    chunk=st.integers(1, 12),
    padding=st.integers(0, 5),
    window=st.integers(1, 20),
    threshold=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_a_stream_is_the_sound_made_at_once_split_where_it_is_quiet(count, chunk, padding, window, threshold):
    speech, tokens = build(), random_codes(count)
    options = {"chunk": chunk, "padding": padding, "window": window, "threshold": threshold}
    pieces = list(stream_of(speech, tokens, voice=VOICE, **options))
    sound = speech.vocode(tokens, VOICE)
    assert sound.shape == (count * HOP,)
    torch.testing.assert_close(torch.cat([torch.zeros(0), *pieces]), sound, atol=1e-6, rtol=0)
    assert [len(piece) for piece in pieces] == expected_lengths(sound, count, **options)


def test_a_stream_passes_the_token_options_on():
    speech = build()

    def options():
        return {"top_k": 4, "penalty_window": 5, "max_tokens": 25, "generator": seeded(3)}

    tokens = list(speech.tokens(text_rows(3), **options()))
    pieces = list(speech.stream(text_rows(3), chunk=6, padding=1, window=3, threshold=1.0, voice=VOICE, **options()))
    assert len(tokens) == 25 and len(pieces) > 1
    torch.testing.assert_close(torch.cat(pieces), speech.vocode(tokens, VOICE), atol=1e-6, rtol=0)


def test_the_first_piece_comes_as_soon_as_its_context_is_complete():
    speech, taken = build(), []

    def tokens():
        for token in random_codes(60):
            taken.append(token)
            yield token

    next(stream_of(speech, tokens(), chunk=10, padding=2, window=5, threshold=1.0))
    assert len(taken) == 10 + speech.codec.receptive_radius < 60


@pytest.mark.parametrize("name, value", [("chunk", 0), ("padding", -1), ("window", 0)])
def test_a_stream_option_out_of_range_is_refused_before_the_first_piece(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        build().stream(text_rows(2), **{name: value})


# ---- the model


def test_the_sample_rate_is_that_of_the_codec():
    codec = CodecConfig(CODES, (1,), (2,), (2,), 8, (3,), ((1,),), sampling_rate=1200)
    assert build(codec=codec).sample_rate == 1200


def test_a_codec_with_fewer_codes_than_the_decoder_is_refused():
    with pytest.raises(ValueError, match="has 23 codes, but the codec has only 22"):
        build(codec=CodecConfig(22, (1,), (2,), (2,), 8, (3,), ((1,),)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_speaks(golden, dtype):
    speech = Speech.from_pretrained(SPEECH, dtype=dtype)
    assert {parameter.dtype for parameter in speech.parameters()} == {dtype}
    [token] = speech.tokens(case("ar_eos")["hidden"][0], max_tokens=1)
    sound = speech.vocode([token, 1])
    assert sound.dtype == torch.float32
    torch.testing.assert_close(sound, golden.vocode([token, 1]), atol=0.05, rtol=0)


# ---- the folder


def write_pickles(folder, wrap=False):
    """The golden folder in upstream's form: a flat pickle, perhaps under "model", and a nested one with an encoder."""
    for name in ("decoder", "codec"):
        (folder / name).mkdir(parents=True)
        shutil.copy(SPEECH / name / "model.json", folder / name)
    decoder = load_file(SPEECH / "decoder/final.safetensors")
    codec = {"encoder": {"conv.weight": torch.ones(2)}, "generator": {}, "quantizer": {}}
    for name, tensor in load_file(SPEECH / "codec/final.safetensors").items():
        module, _, rest = name.partition(".")
        codec[module][rest] = tensor
    torch.save({"model": decoder, "epoch": 3} if wrap else decoder, folder / "decoder/final.pt")
    torch.save(codec, folder / "codec/final.pt")
    return folder


def assert_same_weights(speech, other):
    ours, theirs = speech.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("wrap", [False, True])
def test_upstreams_pickles_give_the_same_model_as_safetensors(golden, tmp_path, wrap):
    assert_same_weights(Speech.from_pretrained(write_pickles(tmp_path / "old", wrap)), golden)


@pytest.mark.parametrize("wrap", [False, True])
def test_converted_pickles_give_the_same_model_without_the_encoder(golden, tmp_path, wrap):
    convert(write_pickles(tmp_path / "old", wrap), tmp_path / "new")
    converted = load_file(tmp_path / "new/codec/final.safetensors")
    assert converted.keys() == load_file(SPEECH / "codec/final.safetensors").keys()
    assert_same_weights(Speech.from_pretrained(tmp_path / "new"), golden)


def test_the_converter_writes_beside_the_pickles_unless_another_folder_is_given(golden, tmp_path, capsys):
    folder = write_pickles(tmp_path / "old")
    assert main([str(folder)]) == 0
    assert "codec/final.safetensors" in capsys.readouterr().out
    for name in ("decoder", "codec"):
        (folder / name / "final.pt").unlink()
    assert_same_weights(Speech.from_pretrained(folder), golden)


def test_the_converter_reports_a_missing_folder_in_one_line_with_status_2(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    written = capsys.readouterr()
    assert written.out == "" and len(written.err.splitlines()) == 1
    assert "has no final.safetensors and no final.pt" in written.err


class CallsPrint:
    """Its pickle calls a function when it is loaded."""

    def __reduce__(self):
        return print, ("the pickle ran",)


@pytest.mark.parametrize(
    "content, message", [({"a": CallsPrint()}, "needs print"), ([torch.ones(1)], "contains no tensors by name")]
)
def test_a_pickle_of_anything_but_a_dict_of_tensors_is_refused_in_one_line(tmp_path, capsys, content, message):
    folder = write_pickles(tmp_path / "old")
    torch.save(content, folder / "decoder/final.pt")
    with pytest.raises(ValueError, match=message) as caught:
        Speech.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["final.pt", "final.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name, content):
    folder = write_pickles(tmp_path / "old")
    (folder / "codec" / name).write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        Speech.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def folder_with(tmp_path, part, changes):
    """A copy of the golden folder with other tensors in one part; None removes one."""
    shutil.copytree(SPEECH, tmp_path, dirs_exist_ok=True)
    file = tmp_path / part / "final.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    file.unlink()
    save_file(tensors, file)
    return tmp_path


@pytest.mark.parametrize(
    "part, changes, message",
    [
        ("decoder", {"norm.weight": None}, "missing: norm.weight"),
        ("decoder", {"extra": torch.ones(1)}, "surplus: extra"),
        ("decoder", {"norm.weight": torch.ones(31)}, r"norm.weight \[31\], expected \[32\]"),
        ("codec", {"generator.conv_pre.weight_g": None}, "missing: generator.conv_pre.weight. "),
    ],
)
def test_missing_surplus_and_misshapen_tensors_are_refused(tmp_path, part, changes, message):
    with pytest.raises(ValueError, match=message):
        Speech.from_pretrained(folder_with(tmp_path, part, changes))


@pytest.mark.parametrize("part, name", [("decoder", "layers_prefix.0"), ("codec", "encoder.x")])
def test_prefix_layers_and_the_codecs_encoder_are_ignored(golden, tmp_path, part, name):
    assert_same_weights(Speech.from_pretrained(folder_with(tmp_path, part, {name: torch.ones(1)})), golden)


def test_a_folder_without_configs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no model.json"):
        Speech.from_pretrained(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    for part in ("decoder", "codec"):
        (tmp_path / part).mkdir()
        shutil.copy(SPEECH / part / "model.json", tmp_path / part)
    with pytest.raises(ValueError, match="no final.safetensors and no final.pt"):
        Speech.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "is a JSON dict, expected a list"),
        ("[1, 2]", "width, codes, options"),
        ('[32, 64, {"transformer_num_blocks": 2}]', "has no transformer_attention_heads"),
        ("not json", "not valid JSON"),
    ],
)
def test_a_decoder_config_of_another_form_is_refused(tmp_path, content, reason):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        read_speech_config(tmp_path / "model.json")
