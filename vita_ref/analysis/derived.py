"""Maps of an observed run that need further passes or products. All of them are derived, none was used by the model.

    rollout     how attention, averaged over heads, leads from the position to the inputs through all layers
    relevance   the same with attention times its gradient, that of the token's log-odds
    gradient    gradient times input: how the log-odds change with each row of embeddings
    lens        what the residual stream after each layer would say, through the final norm and the head

The layers are computed once more, one at a time from the top, from what the run recorded at their inputs. So the memory is
that of one layer, and every map starts from the same hidden states as the answer.

n explained tokens, T positions, L layers, D width, H heads, V vocabulary.

Test: ``pytest tests/analysis/test_look.py``
"""

import torch

from ..masks import Mask


def backward_maps(decoder, run, points, token_ids, relevance=True, before=lambda: None):
    """Rollout, relevance and gradient maps of each explained token, as a dict of [n, T] float32.

    ``points`` are the n columns that the tokens were chosen from. Without ``relevance`` only the rollout. ``before`` is
    called before each gradient; an exception that it raises ends the calculation.
    Source: rollout, Abnar and Zuidema 2020; relevance, Chefer et al. 2021 (self-attention rules), whose matrices are
    multiplied from the top here, by one row for each token.
    """
    rotation, n = run.rotation(), len(points)
    device, dtype = decoder.norm.weight.device, decoder.norm.weight.dtype
    angles = tuple(part.to(device) for part in rotation)
    rows = torch.arange(n)
    total = sum(map(len, run.inputs[0]))
    rollout = torch.zeros(n, total, device=device)  # [n, T]
    rollout[rows, points] = 1.0
    relevant = rollout.clone()  # [n, T]
    grads = torch.zeros(n, total, decoder.config.hidden_size, device=device, dtype=dtype)  # [n, T, D]
    if relevance:
        for i, each in enumerate(run.passes[:n]):
            grads[i, points[i]] = head_gradient(decoder, each.hidden[-1].to(device), token_ids[i])
    for number in reversed(range(len(decoder.layers))):
        x = run.layer_inputs(number)[None].to(device)  # [1, T, D]
        with torch.set_grad_enabled(relevance):
            x.requires_grad_(relevance)
            out, weights = decoder.layers[number](x, angles, Mask(0), None, True)  # [1, T, D]
        mean = weights.detach()[0].float().mean(0)  # [T, T]
        rollout = 0.5 * rollout + 0.5 * rollout @ mean  # [n, T]
        for i in range(n if relevance else 0):
            before()
            last = i == n - 1
            to_x, to_map = torch.autograd.grad(out, (x, weights), grads[i : i + 1], retain_graph=not last)
            useful = (to_map[0] * weights.detach()[0]).float().clamp(min=0).mean(0)  # [T, T]
            relevant[i] = relevant[i] + relevant[i] @ useful  # [T]
            grads[i] = to_x[0]
        del out, weights
    maps = {"rollout": rollout.cpu()}
    if relevance:
        relevant[rows, points] -= 1.0  # the start of the product, which is no relevance
        embeds = run.layer_inputs(0).to(device)  # [T, D]
        maps |= {"relevance": relevant.cpu(), "gradient": (grads * embeds).float().sum(-1).cpu()}
    return maps


def head_gradient(decoder, hidden, token):
    """The gradient of a token's log-odds, log p / (1 - p), at the output of the last layer: [D] -> [D].

    The log-probability of a token that is nearly certain has no gradient to speak of; its log-odds have.
    """
    with torch.enable_grad():
        x = hidden.clone()[None].requires_grad_()  # [1, D]
        logits = decoder.lm_head(decoder.norm(x)).float()  # [1, V]
        others = logits[0, torch.arange(logits.shape[1], device=logits.device) != token]
        return torch.autograd.grad(logits[0, token] - others.logsumexp(0), x)[0][0]


@torch.no_grad()
def logit_lens(decoder, run, token_ids, top=3):
    """What each explained token's position would say after each layer.

    Shapes: -> chosen [n, L+1] float32, the probability of the chosen token; ids [n, L+1, top] long and probs likewise.
    Source: nostalgebraist 2020, the logit lens.
    """
    like = decoder.norm.weight
    chosen, ids, probs = [], [], []
    for each, token in zip(run.passes, token_ids):
        hidden = torch.stack(each.hidden).to(like.device)  # [L+1, D]
        said = decoder.lm_head(decoder.norm(hidden)).float().softmax(-1)  # [L+1, V]
        best = said.topk(min(top, said.shape[-1]))
        chosen.append(said[:, token].cpu())
        ids.append(best.indices.cpu())
        probs.append(best.values.cpu())
    return torch.stack(chosen), torch.stack(ids), torch.stack(probs)


@torch.no_grad()
def head_norms(decoder, run, n):
    """The length of what each head adds to the residual stream, through its part of the output projection.

    Shapes: -> [n, L, H] float32.
    """
    heads, size, like = decoder.config.num_attention_heads, decoder.config.head_dim, decoder.norm.weight
    apart = torch.eye(heads, device=like.device, dtype=like.dtype)[:, :, None]  # [H, H, 1]
    found = []
    for each in run.passes[:n]:
        rows = []
        for layer, attended in zip(decoder.layers, each.heads):
            alone = attended.to(like.device).view(1, heads, size) * apart  # [H, H, K]
            rows.append(layer.self_attn.o_proj(alone.flatten(1)).float().norm(dim=-1).cpu())
        found.append(torch.stack(rows))
    return torch.stack(found)  # [n, L, H]
