"""Cards: each planted bug shows in its probe, the card's copy can be mended, and a guess is judged."""

import pytest
from test_lessons import run_in

from tools.lessons import cards
from tools.lessons.cards import CARDS, ROOT
from tools.mutants import MUTANTS


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.mutant)
def test_the_probe_of_a_card_sees_its_bug_and_something_that_is_right(card, tmp_path):
    cards.write(card, tmp_path)
    rows = cards.symptoms(card, tmp_path)
    assert not all(right for _, right, _ in rows)
    assert card.mutant in {m.name for m in MUTANTS}


def test_a_card_that_was_interrupted_is_given_out_anew(tmp_path, monkeypatch, capsys):
    whole, calls = cards.plant, []

    def stopped(*args):
        calls.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(cards, "plant", stopped)
    assert run_in(tmp_path, "bug", 5) == 130 and calls
    assert not (tmp_path / "bug05").exists()
    monkeypatch.setattr(cards, "plant", whole)
    assert run_in(tmp_path, "bug", 5) == 1
    assert "What is wrong now" in capsys.readouterr().out and not list(tmp_path.glob("*.new"))


def test_a_folder_that_is_no_card_is_one_line(tmp_path, capsys):
    (tmp_path / "bug05").mkdir()
    assert run_in(tmp_path, "bug", 5) == 2
    assert "remove it" in capsys.readouterr().err


def test_the_unharmed_package_has_no_symptoms(tmp_path):
    card = CARDS[5]
    cards.write(card, tmp_path)
    file = cards.mutant_of(card).file
    (tmp_path / "vita_ref" / file).write_text((ROOT / "vita_ref" / file).read_text("utf-8"), encoding="utf-8")
    assert all(right for _, right, _ in cards.symptoms(card, tmp_path))


def test_three_cards_are_hard_and_none_is_given_twice():
    assert sum(card.level == "hard" for card in CARDS) == 3
    assert len({card.mutant for card in CARDS}) == len({card.title for card in CARDS}) == len(CARDS)


def test_a_card_from_the_list_to_the_mended_line(tmp_path, capsys):
    card = CARDS[4]
    mutant = cards.mutant_of(card)
    assert run_in(tmp_path, "bug") == 0
    assert run_in(tmp_path, "bug", 5) == 1
    out = capsys.readouterr().out
    assert card.hint in out and "OFF" in out and mutant.new not in out and mutant.file not in out.split("What is wrong now")[1]
    copy = tmp_path / "bug05" / "vita_ref" / mutant.file
    text = copy.read_text("utf-8")
    place = text[: text.index(mutant.new)].count("\n") + 1
    assert run_in(tmp_path, "bug", 5, "--line", f"{mutant.file}:{place}") == 0
    assert "That is the line" in capsys.readouterr().out
    for line, told in ((f"{mutant.file}:{place + 5}", "within ten lines"), (f"{mutant.file}:1", "another place"), ("vision.py:3", "Another file")):
        assert run_in(tmp_path, "bug", 5, "--line", line) == 1
        assert told in capsys.readouterr().out
    assert run_in(tmp_path, "bug", 5, "--line", "somewhere") == 2
    copy.write_text(text.replace(mutant.new, mutant.old), encoding="utf-8")
    capsys.readouterr()
    assert run_in(tmp_path, "bug", 5) == 0
    assert "Mended" in capsys.readouterr().out
    run_in(tmp_path, "bug")
    assert "mended" in capsys.readouterr().out


def test_a_copy_that_no_longer_runs_is_reported(tmp_path):
    cards.write(CARDS[4], tmp_path)
    (tmp_path / "vita_ref" / "sampling.py").write_text("def (:\n")
    [(_, right, text)] = cards.symptoms(CARDS[4], tmp_path)
    assert not right and "SyntaxError" in text
