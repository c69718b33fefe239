"""The types of `Vita`, for editors and type checkers. ``tests/test_types.py`` compares them with model.py."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import nn

from .answer import Answer, Control
from .audio import AudioEncoder, AudioOutput
from .cache import KVCache
from .chat import Conversation
from .config import VitaConfig
from .decoder import Decoder
from .files.tokenizer import Tokenizer
from .inputs import Batch, Inputs, Step, VitaOutput
from .request import PreparedRequest, Request
from .sampling import Sampling
from .speech import Speech
from .stream import Result, Stream
from .vision import Projector, VisionTower

class Vita(nn.Module):
    config: VitaConfig
    tokenizer: Tokenizer  # None at run time if the folder has no tokenizer
    decoder: Decoder
    vision: VisionTower | None
    projector: Projector | None
    audio: AudioEncoder | None
    speech: Speech | None
    prompt_chunk: int | None

    def __init__(self, config: VitaConfig, tokenizer: Tokenizer | None = None) -> None: ...
    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str] | None = None, dtype: torch.dtype | str | None = None,
        device: torch.device | str = "cpu", quantize: str | None = None, **options: Any,
    ) -> Vita: ...  # fmt: skip
    def save_pretrained(self, folder: str | os.PathLike[str]) -> None: ...
    def encode_images(self, pixel_values: torch.Tensor, *, checked: bool = False) -> torch.Tensor: ...
    def encode_audios(
        self, fbank: torch.Tensor, lengths: torch.Tensor | Sequence[int], *, checked: bool = False
    ) -> AudioOutput: ...
    def inputs(
        self, batch: Batch, cache: KVCache | None = None, finite: bool = True, progress: Callable[..., Any] | None = None
    ) -> Inputs: ...
    def embed(self, ids: torch.Tensor) -> torch.Tensor: ...
    def forward(
        self, input_ids: torch.Tensor | Sequence[torch.Tensor] | None = None, *, cache: KVCache | None = None,
        output_hidden_states: bool = False, output_attentions: bool = False, **batch: Any,
    ) -> VitaOutput: ...  # fmt: skip
    def __call__(
        self, input_ids: torch.Tensor | Sequence[torch.Tensor] | None = None, *, cache: KVCache | None = None,
        output_hidden_states: bool = False, output_attentions: bool = False,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None, audios: Mapping[str, Any] | None = None,
        attention_mask: torch.Tensor | None = None, position_ids: torch.Tensor | None = None,
        labels: torch.Tensor | Sequence[torch.Tensor] | None = None, inputs_embeds: torch.Tensor | None = None,
        sf_masks: Sequence[int] | torch.Tensor | None = None, shared_v_pid_stride: int | None = None,
    ) -> VitaOutput: ...  # fmt: skip
    def steps(
        self, x: Inputs, options: Sampling, errors: dict[int, ValueError] | None = None, *,
        cache: KVCache | None = None, progress: Callable[..., Any] | None = None,
    ) -> Iterator[Step]: ...  # fmt: skip
    def read(
        self, x: Inputs, cache: KVCache, progress: Callable[..., Any] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]: ...
    def generate(
        self, input_ids: torch.Tensor | Sequence[torch.Tensor] | None = None, *, max_new_tokens: int,
        stream: Callable[[torch.Tensor], Any] | None = None, include_prompt: bool = False, **options: Any,
    ) -> torch.Tensor: ...  # fmt: skip
    def answer(
        self, prepared: Sequence[PreparedRequest], options: Sampling, control: Control | None = None
    ) -> Iterator[list[Answer]]: ...
    @overload
    def respond(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, *,
        details: Literal[False] = False, **options: Any,
    ) -> str: ...  # fmt: skip
    @overload
    def respond(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, *,
        details: Literal[True], **options: Any,
    ) -> Result: ...  # fmt: skip
    def stream(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, *,
        progress: Callable[..., Any] | None = None, **options: Any,
    ) -> Stream: ...  # fmt: skip
    def chat(self, system: str | None = None, **options: Any) -> Conversation: ...
    def respond_batch(self, requests: Iterable[Request | Mapping[str, Any] | str], **options: Any) -> list[str]: ...
    def prepare(self, request: Request, max_new_tokens: int | None = None) -> PreparedRequest: ...
    def text(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    def eos_ids(self, eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]: ...
    def padding_id(self, options: Sampling) -> int: ...
    def look(
        self, text: str | None = None, images: Any = (), audios: Any = (), video: Any = None, **options: Any
    ) -> Any: ...
    def speak(self, text: str | Iterable[str], **options: Any) -> tuple[torch.Tensor, int]: ...
    def speak_stream(
        self, text: str | Iterable[str], *, voice: Any = None, speed: float = 1.0, **token_options: Any
    ) -> Iterator[torch.Tensor]: ...
