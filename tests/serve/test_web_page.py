"""The page in a real browser, with the demo weights: pictures, questions, sounds, and what is where a screen reader looks."""

import base64
import io
import json
import re
import shutil
import threading
import time

import numpy as np
import pytest
import soundfile
from serving import served, tiny_vita

from tools.demo import speech
from vita_ref import Vita
from vita_ref.loading import demo_folder
from vita_ref.serve.page import EXAMPLES, WORLD, page, policy

sync_api = pytest.importorskip("playwright.sync_api", reason="no browser is driven without playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

expect = sync_api.expect
expect.set_options(timeout=20_000)
EXAMPLE = demo_folder() / "example.jpg"
DROP = """([name, type, content]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, { type }));
  const event = KIND === "paste" ? new ClipboardEvent("paste", { clipboardData: data, bubbles: true })
    : new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
  document.getElementById("question").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def vita():
    return Vita.from_pretrained()


@pytest.fixture(scope="module")
def server(vita):
    with served(vita, name="demo") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    tone = tmp_path_factory.mktemp("sound") / "tone.wav"
    soundfile.write(tone, np.sin(np.arange(48000 * 5) / 20).astype("float32") / 2, 48000)
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={tone}"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *fake])
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    context = browser.new_context(permissions=["microphone", "camera"])
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def visit(context):
    """Opens a page of a server. It must ask no other server, and have no error."""
    problems = []

    def open_page(server, **size):
        page = context.new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" and "status of 4" not in m.text else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else problems.append(r.url))
        if size:
            page.set_viewport_size(size)
        page.goto(server.url)
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    assert not problems


def give(page, kind, name="x.jpg", type="image/jpeg", content=None):
    """Drops or pastes a file, and waits until it is added."""
    content = EXAMPLE.read_bytes() if content is None else content
    page.evaluate(DROP.replace("KIND", json.dumps(kind)), [name, type, base64.b64encode(content).decode()])
    page.wait_for_selector("#added li")


def ask(page, text):
    """Types a question and presses Enter. Returns the answer when it is complete."""
    count = page.locator("#log > li.assistant").count()
    page.locator("#question").fill(text)
    page.locator("#question").press("Enter")
    page.locator("#log > li.assistant").nth(count).wait_for()
    page.wait_for_selector("#log[aria-busy=false]")
    return answers(page)[count]


def answers(page):
    return page.locator("#log > li.assistant .text").all_text_contents()


def test_a_picture_is_dropped_asked_about_and_asked_about_again_and_all_of_it_is_there_after_a_reload(vita, server, visit):
    page = visit(server)
    give(page, "drop")
    assert ask(page, "What color is the star?") == "Blue."
    chat = vita.chat()
    chat.ask("What color is the star?", images=[EXAMPLE])
    assert ask(page, "What color is the circle?") == chat.ask("What color is the circle?")
    assert "positions read" in page.locator("#log > li.assistant").nth(1).get_attribute("title")
    assert page.locator("#log img").count() == 1
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#log > li").count() == 4 and answers(page)[0] == "Blue."
    assert page.locator("#log img").evaluate("each => each.complete && each.naturalWidth > 0")
    assert ask(page, "What color is the star?") == chat.ask("What color is the star?")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#log > li")).to_have_count(0)
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#log > li").count() == 0 and page.locator("#examples").is_visible()


def test_the_examples_are_questions_that_are_answered_with_a_click(vita, server, visit):
    page = visit(server)
    assert page.locator("#example button").all_text_contents() == list(EXAMPLES) and len(EXAMPLES) == 3
    assert page.get_by_text(WORLD).is_visible()
    for text in EXAMPLES:
        page.get_by_role("button", name="New conversation").click()
        page.get_by_role("button", name=text).click()
        page.wait_for_selector("#log[aria-busy=false]")
        page.wait_for_selector("#log > li.assistant .text:not(:empty)")
        assert answers(page) == [vita.respond(text, images=[EXAMPLE])]


def test_a_picture_is_pasted_chosen_photographed_and_removed(server, visit):
    page = visit(server)
    give(page, "paste", name="pasted.jpg")
    page.locator("#file").set_input_files(EXAMPLE)
    expect(page.locator("#added li")).to_have_count(2)
    page.get_by_role("button", name="Photograph").click()
    end = time.monotonic() + 20
    while not page.evaluate("document.getElementById('view').videoWidth") and time.monotonic() < end:
        time.sleep(0.05)
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator("#added li")).to_have_count(3)
    assert [each.get_attribute("alt") for each in page.locator("#added img").all()] == [
        "pasted.jpg",
        "example.jpg",
        "photograph",
    ]
    page.get_by_role("button", name="Remove photograph").click()
    page.get_by_role("button", name="Remove pasted.jpg").click()
    assert ask(page, "What color is the star?") == "Blue."


def sent(page):
    """Catches the bodies of the questions that the page sends."""
    bodies = []
    page.on("request", lambda r: bodies.append(json.loads(r.post_data)) if r.method == "POST" else None)
    return bodies


@pytest.mark.parametrize("recorded", [True, False])
def test_a_question_is_recorded_or_is_a_file_and_sent_as_a_wav_at_16_khz(vita, server, visit, recorded):
    page = visit(server)
    bodies = sent(page)
    if recorded:
        page.get_by_role("button", name="Record").click()
        page.get_by_role("button", name="Stop recording").wait_for()
        time.sleep(1.5)
        page.get_by_role("button", name="Stop recording").click()
    else:
        file = io.BytesIO()
        soundfile.write(file, np.stack([np.sin(np.arange(44100) / 9)] * 2, 1) / 2, 44100, format="WAV")
        page.locator("#sound").set_input_files({"name": "q.wav", "mimeType": "audio/wav", "buffer": file.getvalue()})
    page.wait_for_selector("#added audio")
    answer = ask(page, "")
    [part] = bodies[0]["messages"][0]["content"]
    content = base64.b64decode(part["input_audio"]["data"])
    samples, rate = soundfile.read(io.BytesIO(content))
    assert rate == 16000 and samples.ndim == 1 and abs(samples).max() > 0.1
    assert 0.5 < len(samples) / rate < 6 if recorded else len(samples) == 16000
    assert answer == vita.respond(None, audios=[io.BytesIO(content)])
    assert page.locator("#log audio").count() == 1


def test_a_spoken_question_about_a_picture_is_answered_rightly(server, visit):
    try:
        spoken = speech.speak("What color is the star?", speech.Manner("en-us", 160, 50))
    except ValueError:
        pytest.skip("espeak-ng is not installed")
    file = io.BytesIO()
    soundfile.write(file, spoken.samples, spoken.rate, format="WAV")
    page = visit(server)
    give(page, "drop")
    page.locator("#sound").set_input_files({"name": "q.wav", "mimeType": "audio/wav", "buffer": file.getvalue()})
    page.wait_for_selector("#added audio")
    assert ask(page, "") == "Blue."


def test_an_answer_is_streamed_with_a_bar_and_stopped_with_escape_or_a_button(vita, server, visit, monkeypatch):
    steps, taken, stopped = vita.steps, [], threading.Event()

    def held(*args, **kw):
        """Three tokens at once, and no other before the browser has stopped the answer."""
        for step in steps(*args, **kw):
            taken.append(len(taken) >= 3 and (stopped.wait(20), time.sleep(0.2)))
            yield step

    whole = vita.respond("Describe the image.", images=[EXAMPLE])
    monkeypatch.setattr(vita, "steps", held)
    page = visit(server)
    for stop in (lambda: page.keyboard.press("Escape"), lambda: page.get_by_role("button", name="Stop").click()):
        taken.clear(), stopped.clear()
        page.get_by_role("button", name="New conversation").click()
        page.get_by_role("button", name="Describe the image.").click()
        page.wait_for_selector("#log > li.assistant .text:not(:empty)")
        assert page.locator("#bar").is_visible() and "Writing" in page.locator("#doing").text_content()
        assert page.locator("#log").get_attribute("aria-busy") == "true" and page.locator("#send").is_disabled()
        stop()
        page.wait_for_selector("#log[aria-busy=false]")
        assert page.get_by_text("You stopped this answer.").is_visible() and not page.locator("#bar").is_visible()
        assert answers(page)[0] and answers(page)[0] != whole
        stopped.set()
        end = time.monotonic() + 10
        while server.engine.running and time.monotonic() < end:
            time.sleep(0.05)
        assert not server.engine.running and len(taken) < 12  # of 13
    monkeypatch.undo()
    assert ask(page, "What color is the star?")


@pytest.mark.parametrize("moment", ["at once", "while it reads", "while it writes"])
def test_a_new_conversation_has_nothing_of_the_answer_that_it_ended(vita, server, visit, monkeypatch, moment):
    steps = vita.steps
    monkeypatch.setattr(vita, "steps", lambda *args, **kw: (time.sleep(0.4) or step for step in steps(*args, **kw)))
    page = visit(server)
    page.get_by_role("button", name="Describe the image.").click()
    if moment == "while it reads":
        page.get_by_text("Looking at the picture").or_(page.get_by_text("Reading")).wait_for()
    if moment == "while it writes":
        page.wait_for_selector("#log > li.assistant .text:not(:empty)")
    page.get_by_role("button", name="New conversation").click()
    page.wait_for_selector("#log[aria-busy=false]", state="attached")  # it is empty, so hidden
    monkeypatch.undo()
    for _ in range(2):
        assert page.locator("#log > li").count() == 0 and page.locator("#examples").is_visible()
        page.reload()
        page.wait_for_selector("body[data-ready]")
    assert ask(page, "Hello") and page.locator("#log > li").count() == 2


def test_a_picture_without_a_word_is_described(vita, server, visit):
    page = visit(server)
    give(page, "drop")
    assert ask(page, "") == vita.respond("Describe the image.", images=[EXAMPLE])


def test_a_click_opens_the_page_that_shows_how_an_answer_came_about(server, context, visit):
    page = visit(server)
    page.get_by_role("button", name=EXAMPLES[0]).click()
    page.wait_for_selector("#log[aria-busy=false]")
    problems = []
    context.on("page", lambda tab: tab.on("pageerror", lambda error: problems.append(str(error))))
    with context.expect_page() as opened:
        page.get_by_role("button", name="Look inside").click()
    tab = opened.value
    tab.wait_for_url(f"{server.url}/look/*", timeout=120_000)
    tab.wait_for_load_state()
    text = tab.locator("body").inner_text()
    assert EXAMPLES[0] in text and "Blue" in text
    for button in ("Numbers as JSON", "Figure as SVG", "Figure as PNG"):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=button).click()
        assert download.value.path().stat().st_size > 1000
    assert not problems
    with pytest.raises(sync_api.Error):
        tab.evaluate("localStorage.length")  # it has no origin: it cannot read what the page of the server stores


def test_an_error_is_told_and_the_question_is_not_lost(server, visit):
    page = visit(server)
    page.locator("#question").fill("word " * 3000)
    page.locator("#question").press("Enter")
    page.get_by_role("alert").get_by_text("positions").wait_for()
    assert page.locator("#question").input_value().startswith("word word") and page.locator("#log > li").count() == 0
    give(page, "drop", name="text.jpg", content=EXAMPLE.read_bytes())
    page.evaluate(DROP.replace("KIND", '"drop"'), ["notes.txt", "text/plain", "aGk="])
    page.get_by_role("alert").get_by_text("notes.txt is neither").wait_for()


def test_a_key_is_asked_for_and_kept(vita, visit):
    with served(vita, name="demo", key="sesame") as server:
        page = visit(server)
        page.locator("#question").fill("Hello")
        page.locator("#question").press("Enter")
        page.get_by_label("API key").fill("sesame")
        assert ask(page, "Is there a star?")


def test_the_keyboard_reaches_every_control_and_each_has_a_name(server, visit):
    page = visit(server)
    page.evaluate("document.activeElement.blur()")
    seen = []
    for _ in range(25):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        if name in seen:
            break
        seen.append(name)
    shown = page.locator("button:visible, textarea:visible, summary:visible").evaluate_all(
        "all => all.map((x) => x.id || x.textContent)"
    )
    assert set(shown) <= set(seen) and len(shown) > 9
    tree = page.locator("body").aria_snapshot()
    assert re.search(r'- log "Messages"', tree) and re.search(r'- textbox "Your question"', tree)
    assert not re.search(r"- (button|textbox|img)\s*$", tree, re.MULTILINE)  # each has a name
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_at_the_width_of_a_phone(server, visit, scheme):
    page = visit(server, width=320, height=640)
    page.emulate_media(color_scheme=scheme)
    give(page, "drop")
    ask(page, "What color is the " + "very" * 60 + " star?")
    assert page.evaluate("document.documentElement.scrollWidth <= 320")
    for name in ("Send", "Picture", "Photograph", "Record", "Sound file"):
        box = page.get_by_role("button", name=name, exact=True).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 320 and box["y"] + box["height"] <= 640


def test_what_the_model_cannot_do_is_not_offered(tmp_path, visit):
    with served(tiny_vita(tmp_path, vision=None, audio=None)) as server:
        page = visit(server)
        shown = page.locator("form button:visible, form label:visible").all_text_contents()
        assert [text.strip() for text in shown] == ["Your question", "Send"]


def test_the_page_loads_nothing_and_its_policy_allows_nothing_else(vita):
    html, headers = page(vita, "</script><b>")
    without_script = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]*)""", without_script) == ["data:,"]
    assert not re.search(r"https?://", html)
    assert html.count("</script>") == 2  # the name of the model ends no script
    rules = headers["content-security-policy"]
    assert "default-src 'none'" in rules and "unsafe" not in rules and "frame-ancestors 'none'" in rules
    assert policy(html) == rules
