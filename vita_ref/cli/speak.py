"""The answer as a sound file, written while the text is still being generated."""

import contextlib
import queue
import threading

import torch

from ..files.messages import shown
from ..files.output import complete_file


class Stopped(Exception):
    """Ends the thread that speaks, wherever it waits for text."""


@contextlib.contextmanager
def speech_file(vita, path, speed):
    """Yields a function that takes the answer's text piece by piece. A thread writes its speech to the file.

    The file is opened before the first piece, and gets its name when it is complete. An exception in the block, such as
    Ctrl-C, stops the speech. Without a path, the function does nothing.
    """
    if not path:
        yield lambda piece: None
        return
    try:
        import soundfile
    except ImportError:
        raise ValueError("--speak needs soundfile: pip install soundfile") from None
    texts, errors, stopped = queue.SimpleQueue(), [], threading.Event()
    pieces = vita.speak_stream(received(texts, stopped), speed=speed)
    with complete_file(path) as file:
        arguments = (pieces, file, vita.speech.sample_rate, stopped, errors)
        worker = threading.Thread(target=write_speech, args=arguments, daemon=True)
        worker.start()
        try:
            yield texts.put
            texts.put(None)
            worker.join()
        except BaseException:
            stopped.set()
            texts.put(None)
            worker.join(timeout=0.5)  # it may be in the middle of a sentence; its file is removed anyway
            raise
        if errors and isinstance(errors[0], (ValueError, OSError, soundfile.SoundFileError)):
            raise ValueError(f"--speak {shown(path)}: {errors[0]}")
        if errors:
            raise errors[0]


def received(texts, stopped):
    """The texts that arrive in a queue, up to None. Raises: Stopped."""
    for text in iter(texts.get, None):
        if stopped.is_set():
            break
        yield text
    if stopped.is_set():
        raise Stopped


def write_speech(pieces, file, rate, stopped, errors):
    """Writes pieces of sound [W] to a file, and appends an exception to ``errors``."""
    import soundfile

    try:
        with soundfile.SoundFile(file, "w", rate, 1, format="WAV") as out, torch.inference_mode():
            for piece in pieces:
                if stopped.is_set():
                    return
                write(out, piece.cpu().numpy())
    except Stopped:
        pass
    except Exception as error:  # noqa: BLE001 - the thread that generates the answer raises it
        errors.append(error)


def write(out, samples):
    """Writes samples [W] to a sound file. Raises: OSError."""
    try:
        out.write(samples)
    except AssertionError:  # soundfile compares the number of samples that it has written
        raise OSError("the disk is full") from None
