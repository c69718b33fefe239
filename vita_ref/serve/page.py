"""The page at ``/``: one HTML file, with what it must know of this model in it. It loads nothing from elsewhere.

Test: ``pytest tests/serve/test_web_page.py``
"""

import base64
import hashlib
import json
import re
from pathlib import Path

from ..loading import demo_folder

WORLD = (
    "These are the demo weights, a model of 7.6 million parameters. It knows one small world: pale squares with one to three "
    "coloured shapes (circle, square, triangle, star, heart, cross), and questions in English about their colour, shape, "
    "size, number and place, typed or spoken. It knows nothing else: a photograph gets an answer about coloured shapes too. "
    "About one answer in a hundred is wrong."
)
OTHER = "The answers are made by a model on this computer. They may be wrong."
EXAMPLES = ("What color is the star?", "How many shapes are there?", "Describe the image.")


def page(vita, name):
    """The page as a text, and its headers."""
    html = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    about = json.dumps(about_model(vita, name)).replace("<", "\\u003c")
    return html.replace("{}", about, 1), {"content-security-policy": policy(html), "cache-control": "no-store"}


def about_model(vita, name):
    """What the page must know: what the model can do, its world and its limits, and questions to click."""
    is_demo = vita.config.template == "demo"
    picture = demo_folder() / "example.jpg" if is_demo else None
    has_picture = picture is not None and picture.is_file()
    return {
        "model": name,
        "images": vita.config.vision is not None,
        "sounds": vita.config.audio is not None,
        "speech": vita.speech is not None,
        "world": WORLD if is_demo else OTHER,
        "positions": vita.config.decoder.max_position_embeddings,
        "examples": list(EXAMPLES) if has_picture or not is_demo else [],
        "picture": f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}" if has_picture else None,
    }


def policy(html):
    """The Content-Security-Policy: nothing but the page's own style and script, and nothing from elsewhere."""
    parts = [re.search(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL).group(1) for tag in ("style", "script")]
    style, script = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; img-src data: blob:; "
        "media-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
