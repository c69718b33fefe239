"""Lesson 12: the loop. Your own parts answer about a JPEG.

You have all parts. Now they are connected, with the weights that come with the project. A checkpoint is a dictionary of names and
tensors. A layer of the decoder has, for instance, model.layers.0.self_attn.q_proj.weight. q, k and v have biases, o_proj has none.
Your functions of lessons 1 to 10 are in `my`: my.rms_norm, my.rotate, my.attention, my.Cache and so on. (A lesson that you have not
finished is lent by the package.)

The prompt is read in one pass. The logits of its last real row choose the first token. From then on the decoder gets one row a pass:
the embedding of the token that was just chosen, at the next position, with everything before it in the cache. The end token ends the
answer and is not part of it. That is all: a loop of a dozen lines, whether the answer is a word or a novel.

What can go wrong here goes wrong quietly. Without a moving position the first token is right and the rest is mush. If the prompt is
read again in every pass, with the cache still full, it is the same. If the first token comes from the wrong row, the answer is about
something else.

    ids + picture --splice--> rows [1, S, D]     positions 0 .. S-1
         |
         v
    +-> decode(rows) -> last row -> lm_head -> largest -> token --(is it the end token?)--> stop
    |                                                      |
    +------ embedding [1, 1, D], position S, S+1, ... <----+

    example: logits of the last row [0.1, 2.0, -1.0] -> token 1; its embedding goes in next, at position S

To do: write `decode` and `answer`. Then run:  python tools/lessons/run.py 12
"""

from types import SimpleNamespace

import torch


def decode(
    my: SimpleNamespace, weights: dict, config: SimpleNamespace, x: torch.Tensor, positions: torch.Tensor, real: torch.Tensor, cache
) -> torch.Tensor:
    """All layers and the final norm.

    x [B, S, D], the new rows; positions [B, S]; real [B, T] bool, of the cached and the new columns; cache, a my.Cache (call its
    write in each layer and its advance once, at the end, with the new columns of real) -> [B, S, D].
    weights has "model.layers.N.input_layernorm.weight", "...self_attn.q_proj.weight" and ".bias", k_proj and v_proj alike,
    "...self_attn.o_proj.weight", "...post_attention_layernorm.weight", "...mlp.gate_proj.weight", up_proj and down_proj, and
    "model.norm.weight". config has num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, rope_theta, rms_norm_eps.
    """
    raise NotImplementedError


def answer(
    my: SimpleNamespace, weights: dict, config: SimpleNamespace, ids: torch.Tensor, features: list, placeholder: int, stop: tuple, limit: int
) -> list[int]:
    """Greedy answer to one prompt. ids [n] long with placeholders; features, a list of [I, D]; stop, the ids that end an answer;
    limit, the largest number of new tokens -> the new ids as a list of int, without the end token.
    The embedding table is weights["model.embed_tokens.weight"], the head weights["lm_head.weight"], both [V, D]."""
    raise NotImplementedError
