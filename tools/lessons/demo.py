"""The demo weights, for the lessons that use them. Sizes and vocabulary are read from the folder."""

import functools

from vita_ref import Vita
from vita_ref.loading import demo_folder
from vita_ref.request import Request


@functools.cache
def demo():
    """The demo model with plain products, loaded once."""
    return Vita.from_pretrained(kernels="plain")


def example():
    """The path of the JPEG that comes with the weights."""
    return demo_folder() / "example.jpg"


@functools.cache
def picture(prompt=None):
    """The request about it, prepared."""
    return demo().prepare(Request(prompt, images=[example()]))
