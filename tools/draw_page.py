"""Draws the picture of the README: the server's page after a few questions about example.jpg. python tools/draw_page.py

Needs Chromium and Playwright's Python package (the extra ``browser``).
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"width": 720, "height": 580}


def draw(url, path):
    """Asks on the page at ``url`` and writes what is seen to ``path``, a PNG file."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(60_000)
        page.goto(url)
        page.get_by_role("button", name="What color is the star?").click()
        page.wait_for_selector("#log[aria-busy=false]")
        page.locator("#file").set_input_files(ROOT / "weights/demo/example.jpg")
        page.wait_for_selector("#added img")
        page.locator("#question").fill("Where is the circle?")
        page.screenshot(path=path)
        browser.close()


def main():
    parser = argparse.ArgumentParser(description="Draws the picture of the server's page.")
    parser.add_argument("--out", default=str(ROOT / "tools" / "page.png"))
    args = parser.parse_args()
    command = [sys.executable, "-m", "vita_ref.serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        draw(process.stdout.readline().split(" ")[0], args.out)
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
