"""``--batch``: the answers to the lines of a file, as JSON lines in the same order.

Test: ``pytest tests/cli/test_batch.py``
"""

from ..files.messages import shown
from .flags import world_size
from .requests import prepare_lines
from .terminal import json_line, user_message

GROUP = 8  # lines that are answered together


def answer_batch(lines, prepare, answer, show, args):
    """Prepares and answers the lines in groups. ``show`` prints an answer, with the line's id.

    A line with an error is printed as its id and the error.
    Raises: ValueError about the first of these at the end, or at once with --batch-stop.
    """
    failed = []
    for start in range(0, len(lines), GROUP):
        group = lines[start : start + GROUP]
        prepared = prepare_lines(group, prepare)
        if world_size() > 1:
            from .ranks import same_errors

            prepared = same_errors(prepared)
        for line, result in zip(group, answer_group(prepared, answer, args.batch_stop)):
            if not isinstance(result, ValueError):
                show(*result, {} if line.id is None else {"id": line.id})
                continue
            message = user_message(result)
            print(json_line({"id": line.id, "error": message}), flush=True)
            failed.append(f"{shown(args.batch)} request {line.number}: {message}")
            if args.batch_stop:
                raise ValueError(failed[0])
    if failed:
        raise ValueError(failed[0] + f" ({len(failed)} of {len(lines)} requests failed)" * (len(lines) > 1))


def answer_group(prepared, answer, stop=False):
    """For each prepared request an (answer, timing), or a ValueError. With ``stop`` the first ValueError is the last."""
    bad = [i for i, each in enumerate(prepared) if isinstance(each, ValueError)]
    if stop and bad:
        prepared = prepared[: bad[0] + 1]
    results = iter(answer_together([each for each in prepared if not isinstance(each, ValueError)], answer))
    return [each if isinstance(each, ValueError) else next(results) for each in prepared]


def answer_together(prepared, answer):
    """For each prepared request an (answer, timing), or a ValueError: answered alone if they fail together."""
    if not prepared:
        return []
    try:
        answers, timing = answer(prepared)
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        if len(prepared) == 1:
            return [ValueError(message)]
        return [result for each in prepared for result in answer_together([each], answer)]
    return [each.error or (each, timing) for each in answers]
