"""The check of language-model-layer.md: every verdict is computed again, and a change of figure or code is noticed."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.document import check as program
from tools.document.check import agrees, check, judge, main
from tools.document.register import QUANTITIES, Quantity
from tools.document.run import FOUR, SEVEN, Run
from vita_ref import VitaConfig
from vita_ref.voice import speak as speaking

DOCUMENTED = VitaConfig.preset("documented")
BY_NAME = {q.name: q for q in QUANTITIES}


@pytest.fixture(scope="module")
def run():
    return Run(DOCUMENTED)


@pytest.fixture(scope="module")
def checked(run):
    return check(QUANTITIES, run)


def verdicts(*rows):
    return [row["verdict"] for row in rows]


def test_every_verdict_is_that_of_the_register(checked):
    assert checked[1] == []


def test_each_claim_is_registered_once_and_its_line_is_in_the_document(checked):
    rows = checked[0]
    places = [(row["line"], row["claim"], row["says"]) for row in rows]
    assert len(rows) >= 120 and len(set(places)) == len(places)
    assert all(1 <= row["line"] <= 2252 for row in rows)
    assert set(verdicts(*rows)) == {"holds", "contradicts itself", "wrong"}
    assert len(BY_NAME) == len(QUANTITIES)


@pytest.mark.parametrize(
    ("line", "says", "verdict", "value"),
    [  # computed by hand
        (1325, "178.8 MB", "wrong", f"{2 * 4 * 1091 * 4096 * 4 / 1e6:.3g} MB"),
        (1330, "1.5 GB", "wrong", f"{4 * 32 * 1091**2 * 4 / 1e9:.3g} GB"),
        (1423, "[4, 1091, 128256]", "contradicts itself", "[4, 1091, 151936]"),
        (1482, "1100", "contradicts itself", "1091"),
        (1870, "2128", "holds", str(18 + 2 * (1 + 32 * 32) + 60)),
        (891, "[1, 58]", "holds", "[1, 58]"),
        (964, "[32, 109]", "wrong", f"[32, {8 + 1025}]"),
        (35, "[B, T_audio]", "holds", f"[4, {40 * 600}]"),
        (44, "decoder layers", "contradicts itself", "text"),
        (792, "a name", "wrong", "codes"),
        (816, "features", "wrong", "audio"),
    ],
)
def test_figures_computed_by_hand_get_the_expected_verdict(checked, line, says, verdict, value):
    [row] = [r for r in checked[0] if (r["line"], r["says"]) == (line, says)]
    assert (row["verdict"], row["is"]) == (verdict, value)


def test_a_contradiction_names_the_line_that_it_contradicts(checked):
    contradictions = [r for r in checked[0] if r["verdict"] == "contradicts itself"]
    lines = {row["line"] for row in checked[0]}
    assert all(int(row["why"].split()[1]) in lines for row in contradictions)


def test_a_changed_figure_fails_with_its_line_and_both_verdicts(run, monkeypatch, capsys):
    monkeypatch.setattr(program, "Run", lambda config: run)
    vocabulary = BY_NAME["vocabulary"]
    monkeypatch.setattr(program, "QUANTITIES", [vocabulary])
    assert main([]) == 0
    monkeypatch.setattr(program, "QUANTITIES", [replace(vocabulary, holds={151936: 28, 151935: 381})])
    assert main([]) == 1
    assert "line 381, vocabulary: recorded holds, found contradicts itself" in capsys.readouterr().err


def test_a_corrected_figure_fails_until_its_verdict_is_changed_too(run):
    parameters = BY_NAME["parameters of the decoder"]
    assert check([parameters], run)[1] == []
    problems = check([replace(parameters, wrong={"7.7 billion": 846})], run)[1]
    assert problems == ["line 846, parameters of the decoder: recorded wrong, found holds (7.72 billion)"]


def test_arithmetic_with_another_result_fails(run):
    length = BY_NAME["input 1, length"]
    assert check([replace(length, arithmetic="6 + 1024")], run)[1] == ["input 1, length: 6 + 1024 is not 1031"]


def test_a_model_of_other_sizes_fails():
    narrow = {part: replace(getattr(DOCUMENTED, part), num_hidden_layers=1) for part in ("vision", "audio")}  # these pass quickly
    other = Run(replace(DOCUMENTED, **narrow, decoder=replace(DOCUMENTED.decoder, num_hidden_layers=2, vocab_size=128256)))
    for name in ("decoder layers", "vocabulary", "logits, memory"):
        assert check([BY_NAME[name]], other)[1], name


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("what speech is made from", "text and decoder layers"),
        ("what speech features are made from", "text"),
        ("first stage that the voice changes", "features"),
        ("first stage that the speed changes", "features"),
        ("default speed", 2.0),
        ("what a speed does to the sound", "no multiplier"),
    ],
)
def test_speech_that_works_otherwise_fails(name, truth, run, monkeypatch):
    run = copy.copy(run)
    vars(run).pop("plain", None)  # the stages must be computed again
    vita, stream, speak = run.speaker, run.speaker.speech.stream, run.speaker.speak_stream

    def from_hidden_states(rows, **options):
        return stream(vita.decoder(rows[None]).last_hidden_state[0], **options)

    def other_tokens(text, voice=None, speed=1.0, **options):
        return speak(text, **options, penalty_window=0 if voice is None and speed == 1 else 5, penalty=9.0)

    def twice_as_fast(text, speed=2.0, **options):
        return speak(text, speed=speed, **options)

    def slower(text, speed=1.0, **options):
        return speak(text, speed=1 / speed, **options)

    owner, attribute, replacement = {
        "what speech is made from": (vita.speech, "stream", from_hidden_states),
        "what speech features are made from": (speaking, "prepare_text", str),
        "default speed": (vita, "speak_stream", twice_as_fast),
        "what a speed does to the sound": (vita, "speak_stream", slower),
    }.get(name, (vita, "speak_stream", other_tokens))
    monkeypatch.setattr(owner, attribute, replacement)
    with torch.inference_mode():
        assert BY_NAME[name].truth(run) == truth
        assert check([BY_NAME[name]], run)[1]


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ({"holds": {5: 1}}, ["holds"]),
        ({"wrong": {6: (1, 2)}}, ["wrong", "wrong"]),
        ({"holds": {5: 1}, "contradicts": {6: 2}}, ["holds", "contradicts itself"]),
        ({"contradicts": {6: 1, 7: 2}}, ["contradicts itself", "contradicts itself"]),
    ],
)
def test_a_false_figure_contradicts_if_another_line_has_another_figure(recorded, found):
    rows, problems = judge(Quantity("five", lambda r: 5, **recorded), None)
    assert verdicts(*rows) == found and problems == []


@given(st.integers(0, 10**12), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_figure_holds_if_the_true_value_rounds_to_it(size, digits):
    assert agrees(f"{size / 1e6:.{digits}f} MB", size)
    assert not agrees(f"{size / 1e6 + 1:.{digits}f} MB", size)


def test_the_splice_on_the_cpu_has_the_lengths_of_the_pass_on_the_meta_device(run):
    with torch.inference_mode():
        assert run.counted.attention_mask.shape == run.inputs(FOUR).mask.shape
        assert run.counted.lengths.tolist() == run.lengths(FOUR)
        assert run.inputs(SEVEN).embeds.shape == (7, max(run.lengths(SEVEN)), 4096)


def test_each_stage_of_speech_is_made_from_the_one_before(run):
    with torch.inference_mode():
        made, speaker = run.speak(), run.speaker
        rows = speaker.embed(made["text"])
        assert bytes(made["text"].tolist()) == b"I see three stars."
        assert list(speaker.speech.tokens(rows, max_tokens=20)) == made["features"].tolist()
        assert speaker.speech.vocode(made["features"]).equal(made["audio"])


def test_the_readme_says_what_the_check_says(checked):
    readme = (Path(program.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = checked[0]
    count = Counter(verdicts(*rows))
    hold, contradict, wrong = count["holds"], count["contradicts itself"], count["wrong"]
    totals = f"{len(rows)} claims, of which {hold} hold, {contradict} contradict another line of the same document, and {wrong}"
    assert totals in readme
    _, table = readme.split("| line | claim | says | is | verdict |\n| --- | --- | --- | --- | --- |\n")
    listed = [tuple(line.strip("| ").split(" | ")) for line in table.split("\n\n")[0].splitlines()]
    assert len(listed) > 10
    assert set(listed) <= {(str(r["line"]), r["claim"], r["says"], r["is"], r["verdict"]) for r in rows}


def test_json_has_the_claims_of_the_chosen_verdict_and_all_counts(checked, monkeypatch, capsys):
    monkeypatch.setattr(program, "check", lambda quantities, run: checked)
    assert main(["--json", "--verdict", "wrong"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(verdicts(*found["claims"])) == {"wrong"} and len(found["claims"]) == found["counts"]["wrong"]
    assert sum(found["counts"].values()) == len(checked[0]) and found["problems"] == []
