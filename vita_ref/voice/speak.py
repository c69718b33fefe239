"""The speech of a text that may still be incomplete: sentences -> token ids -> rows of the embedding table -> sound.

U rows of text, D decoder width, W samples of sound.

Test: ``pytest tests/test_generate.py``
"""

import torch

from .text import prepare_text, sentences
from .vocoder import stretch


def speak_stream(vita, text, voice, speed, token_options):
    """The pieces [W] float32 of a text's speech. `Vita.speak_stream` describes the arguments.

    Raises: ValueError, before the first piece, if the checkpoint has no speech weights or an option is out of range.
    """
    check_speech(vita)
    if not 0.5 <= speed <= 2.0:
        raise ValueError(f"speed must be between 0.5 and 2.0, got {speed}")
    return _pieces(vita, [text] if isinstance(text, str) else text, voice, speed, token_options)


def check_speech(vita):
    """Raises: ValueError if the checkpoint has no speech weights."""
    if vita.speech is None:
        raise ValueError(
            "this checkpoint cannot speak: it has no folder vita_tts_ckpt or speech with decoder/ and codec/ in it or "
            "beside it (--speech-dir names another place)"
        )


def _pieces(vita, text, voice, speed, token_options):
    for sentence in sentences(text):
        ids = vita.tokenizer.encode(prepare_text(sentence))
        if ids:
            rows = vita.embed(torch.tensor(ids, device=vita.decoder.norm.weight.device))  # [U, D]
            for piece in vita.speech.stream(rows.float(), voice=voice, **token_options):
                yield stretch(piece, speed)
