"""The rows of a batch: how many positions are left for an answer, and logits that are not finite.

B batch rows, V vocabulary.

Test: ``pytest tests/checks/test_failing_rows.py``
"""

import torch

DEFAULT_NEW_TOKENS = 256


def room(positions, new, limit):
    """How many new tokens fit behind a prompt of so many positions: ``new``, or by default at most 256.

    Raises: ValueError with both numbers if the prompt and its new tokens need more than ``limit`` positions.
    """
    left = limit - positions
    has = f"but this checkpoint has {limit} (max_position_embeddings)"
    if left < 1:
        fewer = "shorten the text, or give fewer images, fewer tiles (max_tiles) or shorter sounds"
        none = "" if left else ", none of them for the answer"
        raise ValueError(f"the prompt takes {positions} positions, {has}{none}: {fewer}")
    if new is not None and new > left:
        takes = f"the prompt takes {positions} positions, and {new} new tokens make it {positions + new}"
        raise ValueError(f"{takes}, {has}: give a max_new_tokens of at most {left}, or a shorter prompt")
    return min(left, DEFAULT_NEW_TOKENS) if new is None else int(new)


def new_token_room(x, options, limit, cache=None):
    """How many new tokens each row of `Inputs` may have behind the cache, as a list. Raises: ValueError as `room`."""
    b, s, _ = x.embeds.shape
    past = [0] * b if cache is None else cache.next_positions.tolist()
    if x.embeds.is_meta:
        used = [s] * b
    elif x.positions is not None:
        real = x.positions if x.mask is None else x.positions.where(x.mask[:, -s:].bool(), 0)  # [B, S]
        used = [last + 1 for last in real.expand(b, s).amax(1).tolist()]
    else:
        new = [s] * b if x.mask is None else x.mask[:, -s:].bool().sum(1).tolist()
        used = [before + n for before, n in zip(past, new)]
    rooms = []
    for row, positions in enumerate(used):
        try:
            rooms.append(room(positions, options.max_new_tokens, limit))
        except ValueError as error:
            raise ValueError(f"row {row}: {error}" if b > 1 else str(error)) from None
    return rooms


def finite_logits(logits, ended, options, errors, vita):
    """The logits with zeros in rows that are not finite, and which rows these are.

    ``errors`` gets a ValueError for each such row that has not ended. Shapes: logits [B, V], ended [B] -> [B, V], [B].
    Raises: ValueError that names these rows, if ``options.errors`` is "raise".
    """
    if logits.is_meta or logits.isfinite().all():
        return logits, torch.zeros_like(ended)
    failed = ~logits.isfinite().all(-1)
    rows = (failed & ~ended).nonzero().flatten().tolist()
    if rows:
        reason = f"not finite (NaN or infinity): {cause_of_failure(vita)}"
        if options.errors == "raise":
            which = f"row {rows[0]} are" if len(rows) == 1 else f"rows {', '.join(map(str, rows))} are"
            raise ValueError(f"the logits of {which} {reason}")
        errors |= {row: ValueError(f"the logits are {reason}") for row in rows}
    return logits.masked_fill(failed[:, None], 0), failed


def cause_of_failure(vita):
    """Why logits are not finite, and what to do."""
    if name := first_bad_weight(vita):
        return f"the weight {name} has such values, so the checkpoint is damaged"
    dtype = str(vita.decoder.norm.weight.dtype).removeprefix("torch.")
    if dtype == "float16":
        return "float16 overflows in a layer (its largest number is 65504), use bfloat16 or float32"
    return f"{dtype} overflows in a layer, or an input is not finite"


def first_bad_weight(vita):
    """The name of the first weight that is not finite, None if there is none."""
    weights = (item for name, part in vita.named_children() if name != "speech" for item in named_tensors(name, part))
    return next((name for name, t in weights if t.is_floating_point() and not t.isfinite().all()), None)


def named_tensors(prefix, module):
    """Parameters and buffers of a module with their names."""
    yield from module.named_parameters(prefix)
    yield from module.named_buffers(prefix)


def prepare_rows(requests, prepare, errors):
    """``prepare`` of each request. With ``errors="return"`` a ValueError stands in the place of what is refused.

    Raises: ValueError, which names the row if there are several.
    """
    is_list = isinstance(requests, (list, tuple))
    if not is_list:
        raise ValueError(f"requests must be a list of Request, dicts or prompts, got {type(requests).__name__}")
    prepared = []
    for row, request in enumerate(requests):
        try:
            prepared.append(prepare(request))
        except ValueError as error:
            if errors == "raise":
                raise ValueError(f"row {row}: {error}" if len(requests) > 1 else str(error)) from None
            prepared.append(ValueError(str(error)))
    return prepared
