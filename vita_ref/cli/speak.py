"""The answer as a sound file, written while the text is still being generated."""

import contextlib
import queue
import threading
from pathlib import Path

import torch


@contextlib.contextmanager
def speech_file(vita, path, speed):
    """Yields a function that takes the answer's text piece by piece. A thread writes its speech to the file.

    The file gets its name when it is complete. Without a path, the function does nothing.
    """
    if not path:
        yield lambda piece: None
        return
    try:
        import soundfile
    except ImportError:
        raise ValueError("--speak needs soundfile: pip install soundfile") from None
    texts, errors = queue.SimpleQueue(), []
    pieces = vita.speak_stream(iter(texts.get, None), speed=speed)
    part = Path(f"{path}.part")

    def work():
        try:
            with soundfile.SoundFile(part, "w", vita.speech.sample_rate, 1, format="WAV") as out, torch.inference_mode():
                for piece in pieces:
                    out.write(piece.cpu().numpy())
        except (ValueError, OSError, soundfile.SoundFileError) as error:
            errors.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    complete = False
    try:
        yield texts.put
        complete = True
    finally:
        texts.put(None)
        worker.join()
        if errors or not complete:
            part.unlink(missing_ok=True)
    if errors:
        raise ValueError(f"--speak {path}: {errors[0]}")
    try:
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"--speak {path}: {error}") from None
