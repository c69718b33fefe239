"""``--dry-run``: what the requests need, from config, tokenizer and media alone."""

import json

import torch

from ..analysis import budget
from ..checks.rows import DEFAULT_NEW_TOKENS, room
from ..loading import demo_folder
from ..request import count_positions, prepare_request
from .flags import check, world_size
from .requests import GROUP, prepare_requests, read_requests


def dry_run(a):
    """Prints what the requests of the flags need, as a table or as JSON."""
    check(a)
    folders = {"vision_dir": a.vision_dir, "audio_dir": a.audio_dir, "speech_dir": a.speech_dir}
    vita, disk = budget.meta_model(a.model or demo_folder(), **folders)

    def prepare(request):
        prepared = prepare_request(request, vita.config, vita.tokenizer)
        room(count_positions(vita.config, prepared)["total"], a.max_new_tokens, vita.config.decoder.max_position_embeddings)
        return prepared

    prepared = prepare_requests(read_requests(a), prepare, a.batch)
    ranks = a.ranks or world_size()
    options = {"dtype": getattr(torch, a.dtype or vita.config.dtype), "quantize": a.quantize, "speech": vita.speech}
    options |= {"pack": a.pack, "max_new_tokens": a.max_new_tokens or DEFAULT_NEW_TOKENS, "group": GROUP}
    report = {"disk": disk, "missing": vita.config.missing, "ranks": ranks, "each_rank": None}
    report |= budget.estimate(vita.config, prepared, **options)
    if ranks > 1:
        report["each_rank"] = budget.estimate(budget.rank_config(vita.config, ranks), prepared, **options)
    print(json.dumps(report, ensure_ascii=False) if a.json else budget.format_table(report))
