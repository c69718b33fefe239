"""The page of a look: its numbers are the look's, nothing of a request becomes markup, and it works in a browser without a network."""

import base64
import configparser
import hashlib
import json
import re
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from vita_ref import Vita
from vita_ref.analysis import page as page_module
from vita_ref.analysis.look import MAPS
from vita_ref.analysis.page import MAX_BYTES, page, page_data, safe_json

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028 ${data} & \"' <!--"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A picture and a sound with hostile names, and a hostile question."""
    folder = tmp_path_factory.mktemp("media")
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    name = folder / "a<b onload=alert(3)>'\".png"
    Image.fromarray(pixels).save(name)
    sound = torch.sin(torch.arange(12000) / 7) * 0.3, 16000
    demo = Vita.from_pretrained(kernels="plain")
    return demo.look(HOSTILE, images=[name], audios=[sound], max_new_tokens=3, passes=24)


@pytest.fixture(scope="module")
def html(seen):
    return seen.html()


class Parsed(HTMLParser):
    """The elements with their attributes, and the text of scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.scripts, self.inside = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


def decoded(array):
    kind = {"f4": "<f4", "f2": "<f2"}[array["type"]]
    return np.frombuffer(base64.b64decode(array["base64"]), kind).reshape(array["shape"])


def test_every_number_on_the_page_is_that_of_the_look(seen, html):
    data = json.loads(Parsed(html).scripts[0])
    for name in MAPS:
        np.testing.assert_array_equal(decoded(data["maps"][name]["values"]), getattr(seen, name).astype(np.float32))
    for layer, array in zip(data["attention_layers"], data["attention"], strict=True):
        np.testing.assert_array_equal(decoded(array), seen.attention[layer])
    for name in ("norms", "attention_norms", "mlp_norms", "head_norms", "lens", "falls"):
        np.testing.assert_array_equal(decoded(data[name]), getattr(seen, name))
    for tower, each in zip(data["towers"], seen.towers, strict=True):
        np.testing.assert_array_equal(decoded(tower["weights"]), each.weights.numpy())
    assert [(t["id"], t["probability"]) for t in data["tokens"]] == [(t.id, t.probability) for t in seen.tokens]
    assert len(data["positions"]) == len(seen.positions) and data["road"] == seen.road


def test_a_hostile_question_and_file_name_stay_text(seen, html):
    """The page has the elements of its template and no others, and the names are in its data unchanged."""
    parsed = Parsed(html)
    template = (page_module.FOLDER / "page.html").read_text(encoding="utf-8")
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in Parsed(template).elements]
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    data = json.loads(parsed.scripts[0])
    assert data["question"] == HOSTILE and data["pictures"][0]["name"] == "a<b onload=alert(3)>'\".png"
    assert html.count("</script>") == template.count("</script>")


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(html):
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:"
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert not re.search(r"<[^>]+\bstyle=", html)  # the policy would not allow it


def test_the_page_names_no_address_of_a_network(html):
    assert set(re.findall(r"https?://[^\"'\s]*", html)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("value", ["</script>", "<!--", "a&b", "\u2028", "\ud800"])
def test_json_in_a_script_cannot_end_it_and_reads_back(value):
    text = safe_json({"x": value})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"x": value}


def large(seen):
    """A look as large as that of a 0.5B with 1,000 positions."""
    n, layers, heads, total = 32, 24, 14, 1031
    draw = np.random.default_rng(0)
    attention = [draw.random((n, heads, total), np.float32) for _ in range(layers)]
    positions = [replace(seen.positions[0], index=i, text=f"word{i}", position_id=i) for i in range(total)]
    maps = {name: draw.random((n, total), np.float32) for name in ("rollout", "relevance", "gradient", "occlusion")}
    per_layer = {"attention_norms": (n, layers), "mlp_norms": (n, layers), "norms": (n, layers + 1), "lens": (n, layers + 1)}
    rest = {name: draw.random(shape, np.float32) for name, shape in per_layer.items()}
    lens_top = [[[("word", 0.5)] * 3] * (layers + 1)] * n
    return replace(seen, attention=attention, positions=positions, pictures=[], sounds=[], towers=[], tokens=[seen.tokens[0]] * n,
                   head_norms=draw.random((n, layers, heads), np.float32), lens_top=lens_top, falls=None, **maps, **rest)  # fmt: skip


def test_a_page_of_a_large_model_is_below_8_mb_and_says_what_it_left_out(seen):
    many = large(seen)
    html = page(many)
    assert len(html.encode()) < MAX_BYTES == 8_000_000
    data = json.loads(Parsed(html).scripts[0])
    assert data["layer_attention"]["shape"] == [24, 32, 1031] and len(data["attention"]) < 24
    assert any("left out" in note for note in data["notes"])
    for layer, array in zip(data["attention_layers"], data["attention"]):
        np.testing.assert_allclose(decoded(array), many.attention[layer], rtol=1e-3)


def test_the_layers_whose_single_heads_are_shown_can_be_chosen(seen):
    data = json.loads(Parsed(seen.html(layers=[3, 1])).scripts[0])
    assert data["attention_layers"] == [1, 3]
    np.testing.assert_array_equal(decoded(data["attention"][1]), seen.attention[3])
    with pytest.raises(ValueError, match="layers must be numbers of 0 to 3"):
        seen.html(layers=[4])


def test_a_page_that_cannot_be_small_is_refused(seen, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="explain fewer tokens, or give fewer layers or media"):
        page(seen)


def test_what_the_page_says_about_trust_are_the_measured_numbers(seen):
    measured = json.loads((page_module.FOLDER / "measured.json").read_text(encoding="utf-8"))
    data = page_data(seen, [0])
    assert data["measured"] == measured
    for part in ("pictures", "spoken"):
        assert f"{100 * measured[part]['shares']['occlusion']:.0f} %" in data["trust"]


def test_the_figure_of_a_token_is_an_svg_with_a_cell_for_each_position_and_no_markup_of_the_question(seen, tmp_path):
    figure = seen.figure(1, "relevance")
    figure.save(tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    cells = [x for x in root.iter(f"{space}rect") if x.find(f"{space}title") is not None]
    assert len(cells) == sum(p.kind != "answer" for p in seen.positions)
    assert {x.tag.removeprefix(space) for x in root.iter()} == {"svg", "rect", "text", "title", "image", "path"}
    assert seen._repr_html_().startswith("<svg")
    with pytest.raises(ValueError, match="token must be 0 to 2 or 'answer'"):
        seen.figure(3)


def test_the_files_that_the_page_is_made_of_are_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(page_module.FOLDER.parents[1] / "setup.cfg")
    patterns = setup["options.package_data"]["vita_ref.analysis"].split(", ")
    others = [path.name for path in page_module.FOLDER.iterdir() if path.is_file() and path.suffix != ".py"]
    assert len(others) == 4 and all(any(fnmatch(name, pattern) for pattern in patterns) for name in others)


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright (extra: browser)")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("the browser test needs chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, seen, tmp_path):
    """The page in a window as wide as a phone's; errors and requests are collected."""
    seen.save(tmp_path / "a.html")
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    tab.problems, tab.requests = [], []
    tab.on("console", lambda message: tab.problems.append(message.text))
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("dialog", lambda dialog: tab.problems.append("dialog"))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto((tmp_path / "a.html").as_uri())
    yield tab
    assert not tab.problems
    assert not [url for url in tab.requests if not url.startswith(("file:", "data:", "blob:"))]
    tab.close()


def test_in_a_browser_tokens_maps_layers_and_places_can_be_chosen(opened, seen):
    assert opened.text_content("#said") == seen.text.strip() or opened.text_content("#said") == seen.text
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390  # a phone has no horizontal scroll bar
    opened.locator("#tokens input").nth(2).check()  # the first one is the whole answer
    assert seen.tokens[1].top[0][1].strip() in opened.text_content("#alternatives")
    opened.select_option("#map", "average")
    opened.select_option("#layer", "2")
    opened.select_option("#head", "1")
    assert "Observed" in opened.text_content("#about")
    place = next(p for p in seen.positions if p.kind == "image" and p.row == 2 and p.column == 1)
    opened.locator(f"#view rect[data-index='{place.index}']").hover()
    detail = opened.text_content("#detail")
    assert place.text in detail and f"position {place.index} " in detail
    shown = float(re.search(r"average ([\d.e-]+)", detail)[1])
    assert shown == pytest.approx(seen.attention[2][1, 1, place.index], rel=0.01)
    assert "on" in opened.get_attribute(f"#strip [data-index='{place.index}']", "class").split()
    sound = next(p for p in seen.positions if p.kind == "audio")
    opened.locator(f"#strip [data-index='{sound.index}']").hover()
    assert opened.locator(f"#view rect.on[data-index='{sound.index}']").count() == 1


def test_in_a_browser_the_keyboard_moves_through_the_positions(opened, seen):
    opened.locator("#strip button").first.focus()
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("ArrowRight")
    assert seen.positions[2].text in opened.text_content("#detail")
    opened.keyboard.press("End")
    assert f"position {len(seen.positions) - 1} " in opened.text_content("#detail")
    assert opened.locator("#strip button[tabindex='0']").count() == 1


def test_in_a_browser_every_control_and_figure_has_a_name_for_a_screen_reader(opened):
    names = opened.evaluate(
        "[...document.querySelectorAll('button, select, input, svg[role=img]')].map(e => e.getAttribute('aria-label') || "
        "e.labels?.[0]?.textContent || e.textContent)"
    )
    assert len(names) > 20 and all(name.strip() for name in names)


def test_in_a_browser_the_json_file_has_the_numbers_of_the_look(opened, seen):
    with opened.expect_download() as download:
        opened.click("#json")
    with open(download.value.path(), encoding="utf-8") as file:
        data = json.load(file)
    assert data["question"] == HOSTILE
    np.testing.assert_array_equal(np.array(data["attention"], np.float32), np.stack(seen.attention))
    got = np.array(data["maps"]["occlusion"]["values"], np.float32)
    np.testing.assert_array_equal(got, seen.occlusion)


def test_in_a_browser_the_figure_of_a_token_is_saved_as_svg_and_png(opened, seen):
    with opened.expect_download() as download:
        opened.click("#svg")
    root = ElementTree.parse(download.value.path()).getroot()
    assert root.tag.endswith("svg") and len(list(root.iter())) > len(seen.positions)
    with opened.expect_download() as download:
        opened.click("#png")
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG" and len(np.unique(np.array(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


STRANGE = "".join(map(chr, [*range(32), *range(127, 160), 0x202E, 0x2028, 0xD800, 0xDFFF, 0xFFFE, 0xFFFF, 0x10FFFF]))


@pytest.mark.parametrize("size", [(1, 900), (900, 1), (7, 40), (40, 7), (1, 1)])
def test_in_a_browser_pictures_of_any_shape_and_any_characters_give_files_that_can_be_read(browser, seen, tmp_path, size):
    """A strip of pixels is drawn so that its cells can be pointed at, and XML has not all characters that a text may have."""
    positions = [replace(p, text=STRANGE) if p.kind == "text" else p for p in seen.positions]
    look = replace(seen, pictures=[replace(seen.pictures[0], size=size, name=STRANGE)], positions=positions, text=STRANGE,
                   tokens=[replace(token, text=STRANGE) for token in seen.tokens])  # fmt: skip
    look.save(tmp_path / "a.html")
    look.figure(0).save(tmp_path / "b.svg")
    ElementTree.parse(tmp_path / "b.svg")
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto((tmp_path / "a.html").as_uri())
    cells = tab.locator("#view figure").first.locator("rect.cell")
    sides = cells.evaluate_all("cells => cells.map(cell => cell.getBoundingClientRect()).map(box => [box.width, box.height])")
    assert len(sides) == 16 and all(5 < side < 500 for both in sides for side in both)
    for token, name in ((0, "svg"), (1, "png")):
        tab.locator("#tokens input").nth(token).check()
        with tab.expect_download() as download:
            tab.click(f"#{name}")
        if name == "svg":
            ElementTree.parse(download.value.path())
        else:
            with Image.open(download.value.path()) as image:
                assert image.format == "PNG" and image.height > 300
    tab.close()


def test_a_look_is_written_in_a_line_and_its_figure_needs_no_occlusion(seen):
    for left_out in ((), ("occlusion",), ("occlusion", "rollout", "relevance", "gradient")):
        look = replace(seen, **dict.fromkeys(left_out))
        assert len(repr(look)) < 300 and not any(name in repr(look) for name in left_out) and repr(look).isprintable()
        assert look in [look] and look != replace(look)  # equal to itself only: arrays have no single answer
        assert look.figure().svg == look._repr_html_() == look.figure("answer", "average" if left_out else "occlusion").svg
        for token in range(len(look.tokens)):
            assert look.figure(np.int64(token)).svg == look.figure(token).svg
    for wrong in (-1, len(seen.tokens), "x", 1.5, None, True, [0]):
        with pytest.raises(ValueError, match="token must be 0 to 2 or 'answer'"):
            seen.figure(wrong)
