"""The check of lesson 8, patches and the vision tower's block."""

from types import SimpleNamespace

import torch
from torch.nn import functional as F

from tools.lessons.check import Case, Lesson, Mistake, randn
from tools.lessons.checks.c04 import Called
from vita_ref.vision import Embeddings, VisionAttention, VisionLayer


def embed(pixels, weight, bias, class_token, position):
    rows, columns = (n // weight.shape[2] for n in pixels.shape[2:])
    made = Embeddings(SimpleNamespace(hidden_size=len(bias), patch_size=weight.shape[2], num_channels=weight.shape[1], grid=1))
    made.patch_embedding.weight.data, made.patch_embedding.bias.data = weight, bias
    made.class_embedding.data = class_token.view(1, 1, -1)
    made.positions = lambda *_: position[None, : 1 + rows * columns]
    return made(pixels).detach()


def vision_attention(x, qkv, qkv_bias, proj, proj_bias, heads):
    made = VisionAttention(SimpleNamespace(hidden_size=x.shape[2], num_attention_heads=heads, qkv_bias=True))
    made.qkv.weight.data, made.qkv.bias.data, made.proj.weight.data, made.proj.bias.data = qkv, qkv_bias, proj, proj_bias
    return made(x).detach()


def block(x, norm1, attend, ls1, norm2, mlp, ls2):
    made = VisionLayer.__new__(VisionLayer)
    torch.nn.Module.__init__(made)
    made.norm1, made.norm2, made.attn, made.mlp = Called(norm1), Called(norm2), Called(attend), Called(mlp)
    made.ls1, made.ls2 = ls1, ls2
    return made(x)


def patches():
    """Pixels [2, 3, 4, 6] in patches of 2, E = 5."""
    return randn(2, 3, 4, 6), randn(5, 3, 2, 2, seed=1), randn(5, seed=2), randn(5, seed=3), randn(7, 5, seed=4)


def attended():
    return randn(2, 5, 6), randn(18, 6, seed=1), randn(18, seed=2), randn(6, 6, seed=3), randn(6, seed=4), 2


def parts():
    norm1, attend, norm2, mlp = (lambda x: 2 * x), (lambda x: x.cumsum(1) - 1), (lambda x: x.square()), (lambda x: x + 3)
    return norm1, attend, torch.tensor([0.5, 2.0]), norm2, mlp, torch.tensor([3.0, 0.1])


def cases():
    one = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2), torch.tensor([[1.0, 0], [0, 10]]).view(1, 1, 2, 2)
    same = lambda x: x
    return [
        Case("the patch of the text, class token 7, positions 0 and 100", "embed",
             lambda my: my.embed(*one, torch.tensor([0.5]), torch.tensor([7.0]), torch.tensor([[0.0], [100]])),
             torch.tensor([[[7.0], [141.5]]])),
        Case("2 x 3 patches of two pictures", "embed", lambda my: my.embed(*patches())),
        Case("values [1, 2] for all: every position gets the mean", "vision_attention",
             lambda my: my.vision_attention(torch.tensor([[[1.0, 2], [3, 4]]]), torch.cat([torch.zeros(4, 2), torch.eye(2)]),
                                            torch.zeros(6), torch.eye(2), torch.zeros(2), 1), torch.tensor([[[2.0, 3], [2, 3]]])),
        Case("two heads of three", "vision_attention", lambda my: my.vision_attention(*attended())),
        Case("a layer scale of zeros leaves the input as it is", "block",
             lambda my: my.block(randn(1, 3, 2), same, same, torch.zeros(2), same, same, torch.zeros(2)), randn(1, 3, 2)),
        Case("x = 1: norm1 doubles, attention adds 1, ls1 is 10; norm2 halves, the MLP adds 1, ls2 is 100", "block",
             lambda my: my.block(torch.ones(1, 1, 1), lambda x: 2 * x, lambda x: x + 1, torch.tensor([10.0]),
                                 lambda x: x / 2, lambda x: x + 1, torch.tensor([100.0])), torch.full((1, 1, 1), 31 + 16.5 * 100)),
        Case("three positions of two channels", "block", lambda my: my.block(randn(1, 3, 2), *parts())),
    ]  # fmt: skip


def embedded(pixels, weight, bias, token, position, column_first=False, token_last=False, token_position=True, add=True):
    x = F.conv2d(pixels, weight, bias, weight.shape[2])
    x = (x.mT if column_first else x).flatten(2).mT
    token = token.expand(len(x), 1, -1)
    if not add:
        return torch.cat([token, x], 1)
    if not token_position:
        return torch.cat([token, x + position[1:]], 1)
    return torch.cat([x, token] if token_last else [token, x], 1) + position


def with_embed(**options):
    return {"embed": lambda *a: embedded(*a, **options)}


def attend(x, qkv, qkv_bias, proj, proj_bias, heads, split=None, scale=True, causal=False, merge=None, project=True):
    out = x @ qkv.T + qkv_bias
    if split == "heads first":
        q, k, v = out.unflatten(2, (heads, 3, -1)).permute(3, 0, 2, 1, 4)
    elif split == "interleaved":
        q, k, v = out.unflatten(2, (3, -1, heads)).permute(2, 0, 4, 1, 3)
    else:
        q, k, v = out.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale else 1)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
    out = scores.softmax(-1) @ v
    out = out.reshape(x.shape) if merge == "no transpose" else out.transpose(1, 2).flatten(2)
    return out @ proj.T + proj_bias if project else out


def with_attention(**options):
    return {"vision_attention": lambda *a: attend(*a, **options)}


def scales_sum(x, norm1, attend, ls1, norm2, mlp, ls2):
    x = (x + attend(norm1(x))) * ls1
    return (x + mlp(norm2(x))) * ls2


def scales_input(x, norm1, attend, ls1, norm2, mlp, ls2):
    x = x + attend(norm1(x) * ls1)
    return x + mlp(norm2(x) * ls2)


def with_block(function):
    return {"block": function}


LESSON = Lesson(
    8, "patches", "patches and the vision tower's block",
    {"embed": embed, "vision_attention": vision_attention, "block": block}, cases,
    (
        Mistake("patches column by column", "the second patch is below the first. It should be beside it.",
                "flatten the grid with the rows outside: [N, E, rows, columns] -> [N, E, rows * columns].", with_embed(column_first=True)),
        Mistake("the class token at the end", "it belongs in front of the patches.", "join the class token, then the patches.",
                with_embed(token_last=True)),
        Mistake("no position for the class token", "positions were added to the patches alone.",
                "join first, then add the positions [P, E] to all rows.", with_embed(token_position=False)),
        Mistake("positions forgotten", "no row knows where it was.", "add the position embedding to all rows.", with_embed(add=False)),
        Mistake("bias of the patches forgotten", "the convolution has a bias.", "add the bias [E] to every patch, not to the class token.",
                {"embed": lambda x, w, b, *a: embedded(x, w, None, *a)}),
        Mistake("heads before q, k and v", "the outputs were cut into heads first, and each head into q, k and v.",
                "cut into q, k and v first, then each into heads.", with_attention(split="heads first")),
        Mistake("heads interleaved", "number i was given to head i modulo H.", "a head is K neighbouring numbers.",
                with_attention(split="interleaved")),
        Mistake("scale forgotten", "the scores are not divided by sqrt(K).", "divide the scores by sqrt(K).", with_attention(scale=False)),
        Mistake("causal mask in the tower", "a patch sees only the patches before it.", "use no mask.", with_attention(causal=True)),
        Mistake("heads joined without a transpose", "positions and heads are mixed up in the result.",
                "transpose [N, H, P, K] to [N, P, H, K] before you join the heads.", with_attention(merge="no transpose")),
        Mistake("last projection forgotten", "the heads were joined, and not mixed by proj.", "apply proj and its bias at the end.",
                with_attention(project=False)),
        Mistake("layer scale forgotten", "what the parts give is added as it is.", "multiply it by ls1 and ls2 before you add.",
                with_block(lambda x, n1, at, l1, n2, mlp, l2: block(x, n1, at, torch.ones_like(l1), n2, mlp, torch.ones_like(l2)))),
        Mistake("layer scale of the sum", "the residual stream was scaled too.", "scale what the part gives, then add.",
                with_block(scales_sum)),
        Mistake("layer scale in front of the part", "the input of the part was scaled, not its output.",
                "multiply what the part gives.",
                with_block(scales_input)),
        Mistake("one layer scale for both parts", "ls1 was used twice.", "ls2 belongs to the MLP.",
                with_block(lambda x, n1, at, l1, n2, mlp, l2: block(x, n1, at, l1, n2, mlp, l1))),
    ),
    {"embed": "convolve with stride p; flatten the grid and bring E to the end; put the class token in front of each picture; add "
              "the positions.",
     "vision_attention": "one linear map; reshape the 3*E to (3, H, K); bring to [N, H, P, K]; scaled scores, softmax, values; "
                         "transpose and join the heads; the last linear map.",
     "block": "x plus ls1 times attend of norm1 of x; then the same with the MLP, norm2 and ls2."},
    ("patches",),
)  # fmt: skip
