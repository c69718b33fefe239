"""Lesson 6: sampling, from logits to the next token.

The model gives one number for each of V tokens, the logits. A softmax turns them into probabilities. The simplest choice is
the likeliest token ("greedy"). It is right for questions with one answer, and dull for stories. To vary, one draws a token by
its probability, after up to three changes, in this order.

Temperature: the logits are divided by t before the softmax. Below 1 the likeliest tokens gain, above 1 the unlikely ones do.
t = 0 stands for greedy: all probability on the largest logit (the lowest id, if several are equal). Top-k: only the k largest
logits stay (and those equal to the smallest of them); 0 keeps all. Top-p: of the tokens sorted by probability as few are kept
as have at least p together; the likeliest always stays; 1 keeps all. What is removed gets the logit minus infinity, so that
the softmax after it shares the probability among the rest.

The repetition penalty r comes before all this: the logits of tokens that have occurred are made smaller. A positive logit is
divided by r and a negative one is multiplied by r, because dividing a negative number would make it larger.

    logits            [0, 0.693, 1.386, 2.079] = ln [1, 2, 4, 8]
    probabilities     [1/15, 2/15, 4/15, 8/15]
    temperature 0.5   doubles the logits, so it squares: [1, 4, 16, 64] / 85
    top-k 2           [0, 0, 4, 8] / 12
    top-p 0.7         8/15 = 0.53 is not enough, with 4/15 it is 0.8: [0, 0, 4, 8] / 12
    penalty 2 on the tokens 0 and 3 of the logits [-1, 0.5, 1, 3]: [-2, 0.5, 1, 1.5]

    logits --> penalty --> / temperature --> top-k --> top-p --> softmax --> draw
    [B, V]                                                       [B, V]      [B]

To do: write `penalise` and `probabilities`. The draw is torch.multinomial. Then run:  python tools/lessons/run.py 6
"""

import torch


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """logits [B, V]; seen [B, V] bool, True for tokens that have occurred -> [B, V]."""
    raise NotImplementedError


def probabilities(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """logits [B, V] -> [B, V] float32, each row sums to one."""
    raise NotImplementedError
