"""``--dry-run``: what the requests need, from config, tokenizer and media alone."""

import json

import torch

from ..analysis import budget
from ..checks.rows import DEFAULT_NEW_TOKENS
from ..files.messages import shown
from ..loading import demo_folder
from ..request import check_length, prepare_request
from ..voice.speak import check_speech
from .batch import GROUP
from .flags import check, world_size
from .requests import prepare_lines, read_requests


def dry_run(a):
    """Prints what the requests of the flags need, as a table or as JSON. Raises: ValueError if one is not answerable."""
    check(a)
    folders = {"vision_dir": a.vision_dir, "audio_dir": a.audio_dir, "speech_dir": a.speech_dir}
    vita, disk = budget.meta_model(a.model or demo_folder(), **folders)
    if a.speak:
        check_speech(vita)

    def prepare(request):
        prepared = prepare_request(request, vita.config, vita.tokenizer)
        check_length(vita.config, prepared, a.max_new_tokens)
        return prepared

    requests = read_requests(a)
    prepared = prepare_lines(requests, prepare) if a.batch else [prepare(requests[0])]
    if bad := [(line, each) for line, each in zip(requests, prepared) if isinstance(each, ValueError)]:
        raise ValueError(f"{shown(a.batch)} request {bad[0][0].number}: {bad[0][1]}")
    ranks = a.ranks or world_size()
    options = {"dtype": getattr(torch, a.dtype or vita.config.dtype), "quantize": a.quantize, "speech": vita.speech}
    options |= {"pack": a.pack, "max_new_tokens": a.max_new_tokens or DEFAULT_NEW_TOKENS, "group": GROUP}
    report = {"disk": disk, "missing": vita.config.missing, "ranks": ranks, "each_rank": None}
    report |= budget.estimate(vita.config, prepared, **options)
    if ranks > 1:
        report["each_rank"] = budget.estimate(budget.rank_config(vita.config, ranks), prepared, **options)
    print(json.dumps(report, ensure_ascii=False) if a.json else budget.format_table(report))
