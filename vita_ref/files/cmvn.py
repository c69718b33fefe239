"""The statistics file of the audio encoder, ``global_cmvn``, for comparing and converting.

The model does not read it: checkpoints hold both statistics as buffers.

M mel bins.

Test: ``pytest tests/files/test_cmvn.py``
"""

import json

import torch

from .messages import one_line_errors, shown
from .values import read_text


@one_line_errors
def read_cmvn(path, is_json):
    """Mean and 1 / standard deviation of each mel bin. The file has sums over the training data.

    Shapes: -> two of [M] float32
    Raises: ValueError if the file is missing or has another format.
    Source: upstream whale/cmvn.py: JSON, or Kaldi's text.
    """
    try:
        sums, squares, count = _read_sums(read_text(path, "config"), is_json)
        sums, squares = torch.tensor([sums, squares], dtype=torch.float64)
        mean = sums / count  # [M]
    except (ValueError, LookupError, TypeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"cannot read cmvn statistics from {path} (is_json={is_json}): {shown(str(error), 200)}") from None
    variance = (squares / count - mean.square()).clamp(min=1e-20)  # [M]
    return mean.float(), variance.rsqrt().float()


def _read_sums(text, is_json):
    """Sums and sums of squares by bin, and the number of frames. Kaldi writes ``[ sums count squares 0 ]``."""
    if is_json:
        stats = json.loads(text)
        return stats["mean_stat"], stats["var_stat"], stats["frame_num"]
    numbers = [float(x) for x in text.strip().removeprefix("[").removesuffix("]").split()]
    half = len(numbers) // 2
    return numbers[: half - 1], numbers[half:-1], numbers[half - 1]
