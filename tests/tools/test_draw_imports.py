"""The drawing of the imports is that of the code."""

from tools.draw_imports import OUT, draw, read_edges


def test_the_drawing_is_current():
    assert draw(read_edges()) == OUT.read_text(encoding="utf-8"), "run: python tools/draw_imports.py"


def test_known_imports_are_drawn_and_late_ones_are_dotted():
    edges = read_edges()
    assert edges["decoder", "masks"] and edges["generate", "cli/"] and edges["scale/", "decoder"]
    assert not edges["loading", "scale/"]  # when it is called
    assert ("decoder", "vision") not in edges


def test_no_arrow_of_the_tops_of_files_runs_back():
    tops = {edge for edge, top in read_edges().items() if top}
    nodes, done = {name for edge in tops for name in edge}, set()
    while nodes - done:
        free = {name for name in nodes - done if all(end in done for start, end in tops if start == name)}
        assert free, f"a cycle among {sorted(nodes - done)}"
        done |= free
