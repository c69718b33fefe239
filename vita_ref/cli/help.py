"""``--help`` in groups: what is asked, how the answer is chosen, the model, the processor, what is printed.

Test: ``pytest tests/cli/test_help.py``
"""

import argparse

GROUPS = {  # title -> the flags in it; a parser may have fewer of them
    "the request": (
        *("question", "prompt", "image", "audio", "video", "fps", "max_frames", "max_tiles"),
        *("system", "system_file", "raw", "batch", "batch_stop"),
    ),
    "the answer": (
        *("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "max_seconds"),
    ),
    "the conversation": ("load", "overflow"),
    "the model": ("model", "vision_dir", "audio_dir", "speech_dir", "dtype", "quantize", "no_mmap"),
    "speed and memory": ("device", "threads", "kernels", "pack", "dry_run", "ranks"),
    "the server": ("host", "port"),
    "output": ("json", "top", "no_stream", "speak", "speed", "voice", "page", "page_tokens", "page_passes", "explain", "verbose", "help"),
}


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines of 110 characters; a number is N or X."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=110)

    def _get_default_metavar_for_optional(self, action):
        return {int: "N", float: "X"}.get(action.type, action.dest.upper())


def grouped_help(parser):
    """The help of a parser in the order of `GROUPS`. Flags that no group has come last, under "more"."""
    shown = {name: title for title, names in GROUPS.items() for name in names}
    formatter = parser._get_formatter()
    asks = any(action.dest == "question" for action in parser._actions)
    formatter.add_usage(f"%(prog)s {'[QUESTION] ' * asks}[flags]" if parser.usage is None else parser.usage, [], [])
    formatter.add_text(parser.description)
    for title, names in {**GROUPS, "more": ()}.items():
        actions = [action for action in parser._actions if shown.get(action.dest, "more") == title]
        formatter.start_section(title)
        formatter.add_arguments(sorted(actions, key=lambda a: names.index(a.dest) if a.dest in names else 0))
        formatter.end_section()
    formatter.add_text(parser.epilog)
    return formatter.format_help()
