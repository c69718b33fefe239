"""The server under load: python -m tools.bench.serve [--requests 1000] [--clients 8]

Starts ``python -m vita_ref.serve`` with the demo weights and sends it conversations: each client asks about a picture of its
own, asks a second time with the first answer, and begins anew; every tenth request is streamed and given up after its first
text. Prints the memory of the process (resident set) after each tenth of the requests, requests per second, and the positions
that were read and that were known. Exits with status 1 if the second half of the requests needs more than 16 MB more.
"""

import argparse
import base64
import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
GROWTH = 16  # megabytes, in the second half
QUESTIONS = ("What color is the circle?", "How many shapes are there?", "Describe the image.", "Is there a star?")


def picture(number):
    """A picture that no other number has, as a data URL."""
    image = Image.new("RGB", (160, 160), (240, 240, 235 - number % 16))
    x, y = 20 + number * 7 % 70, 20 + number * 13 % 70
    ImageDraw.Draw(image).ellipse((x, y, x + 50, y + 50), fill=(220, number * 37 % 256, 40))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def memory(process):
    """The resident set of a process, in megabytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def post(url, messages, leave=False):
    """The answer of the server; with ``leave`` the connection is closed after the first text."""
    body = {"model": "demo", "messages": messages, "max_tokens": 24, "stream": leave}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return response.read(400) if leave else json.load(response)


class Load:
    """The clients together: how many requests they have sent, and what they got."""

    def __init__(self, url, requests, report):
        self.url, self.requests, self.report = url, requests, report
        self.sent, self.counts, self.lock = 0, Counter(), threading.Lock()

    def take(self):
        """The number of the next request, None after the last."""
        with self.lock:
            if self.sent == self.requests:
                return None
            self.sent += 1
            if self.sent % max(1, self.requests // 10) == 0:
                self.report(self.sent)
            return self.sent

    def client(self, _):
        """Asks until all requests are sent."""
        history = []
        while (number := self.take()) is not None:
            question = QUESTIONS[number % len(QUESTIONS)]
            if not history:
                parts = [{"type": "image_url", "image_url": {"url": picture(number)}}, {"type": "text", "text": question}]
                history = [{"role": "user", "content": parts}]
            else:
                history.append({"role": "user", "content": question})
            if number % 10 == 0:
                post(self.url, history, leave=True)
                history = []
                continue
            answer = post(self.url, history)
            usage = answer["usage"]
            known = usage["prompt_tokens_details"]["cached_tokens"]
            turn = "second" if len(history) > 1 else "first"
            with self.lock:
                self.counts.update({f"{turn} turns": 1, f"{turn} read": usage["prompt_tokens"] - known, f"{turn} known": known})
            text = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
            history = [*history, text] if len(history) == 1 else []


def main():
    parser = argparse.ArgumentParser(description="The server under load: memory, and positions that were read.")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    args = parser.parse_args()
    command = [sys.executable, "-m", "vita_ref.serve", "--port", "0", "--dtype", "float32"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    figures = []

    def report(sent):
        figures.append(memory(process))
        print(f"{sent:6} requests   {figures[-1]:7.1f} MB", flush=True)

    try:
        url = process.stdout.readline().split("/ ")[0]
        report(0)
        load, start = Load(url, args.requests, report), time.perf_counter()
        with ThreadPoolExecutor(args.clients) as pool:
            list(pool.map(load.client, range(args.clients)))
        seconds = time.perf_counter() - start
        report(args.requests)
    finally:
        process.terminate()
        process.wait(30)
    print(f"{args.requests / seconds:.1f} requests/s; " + ", ".join(f"{name} {n}" for name, n in sorted(load.counts.items())))
    grown = figures[-1] - figures[len(figures) // 2]
    print(f"second half: {grown:+.1f} MB")
    return int(grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
