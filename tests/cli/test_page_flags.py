"""--page and --explain: the answer on standard output, a page or a table beside it, and one line for what cannot be."""

import json
import re

import pytest
from command_line import write_tiny
from PIL import Image

from vita_ref.generate import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    Image.new("RGB", (50, 40), (10, 200, 30)).save(folder / "x.png")
    return folder


def answered(capsys, *flags):
    assert main(list(map(str, flags))) == 0
    return capsys.readouterr()


def test_a_page_is_written_beside_the_answer_that_comes_without_it(folder, tmp_path, capsys):
    request = ("What is this?", "--model", folder, "--image", folder / "x.png", "--max-new-tokens", 3)
    plain = answered(capsys, *request, "--kernels", "plain", "--no-stream")
    out = answered(capsys, *request, "--page", tmp_path / "a.html", "--page-passes", 5, "--page-tokens", 2)
    assert out.out == plain.out and not out.err
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html)[1])
    assert data["question"] == "What is this?" and data["pictures"][0]["name"] == "x.png"
    assert len(data["tokens"]) == 2 and data["total_tokens"] == 3 and len(data["units"]) <= 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_the_cost_is_told_on_standard_error_if_asked_for(folder, tmp_path, capsys):
    out = answered(capsys, "Hi", "--model", folder, "--max-new-tokens", 1, "--page", tmp_path / "a.html", "--verbose")
    assert re.search(r"^occlusion: \d+ passes of \d+ positions, about [\d.e-]+ s; relevance: as long as 3 passes$", out.err, re.MULTILINE)


def test_explain_prints_a_table_of_the_positions_and_then_the_answer(folder, capsys):
    request = ("What is this?", "--model", folder, "--image", folder / "x.png", "--max-new-tokens", 3)
    answer = answered(capsys, *request, "--kernels", "plain", "--no-stream").out
    out = answered(capsys, *request, "--explain").out
    assert out.endswith("\n\n" + answer)
    lines = out.splitlines()
    assert lines[0].split() == ["position", "id", "kind", "what", "token", "attention"]
    places = [int(line.split()[0].split("-")[0]) for line in lines[1 : lines.index("")]]
    assert places == sorted(places) and places[0] == 0
    assert sum("picture 1" in line for line in lines) > 3


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--page", "a.html", "--json"], "leave out --batch, --json"),
        (["--explain", "--dry-run"], "leave out --batch, --json"),
        (["--page", "a.html", "--kernels", "fast"], "plain products"),
        (["--page", "a.html", "--pack"], "plain products"),
        (["--page", "x.png"], "ends in .html"),
        (["--page", "nowhere/a.html"], "--page 'nowhere/a.html': its folder does not exist"),
        (["--page-passes", "0"], "need --page"),
        (["--page", "a.html", "--page-tokens", "0"], "--page-tokens must be at least 1"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_page(folder, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert main(["Hi", "--model", str(folder), *flags]) == 2
    out = capsys.readouterr()
    assert words in out.err and out.err.count("\n") == 1 and not out.out and not list(tmp_path.iterdir())


def test_a_request_that_fails_leaves_no_page(folder, tmp_path, capsys):
    assert main(["Hi", "--model", str(folder), "--image", str(tmp_path / "none.png"), "--page", str(tmp_path / "a.html")]) == 2
    assert "none.png" in capsys.readouterr().err and not list(tmp_path.iterdir())
