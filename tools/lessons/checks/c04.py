"""The check of lesson 4, SwiGLU and a layer."""

import math

import torch
from torch.nn import functional as F

from tools.lessons.check import Case, Lesson, Mistake, randn
from vita_ref.decoder import MLP, DecoderLayer


def swiglu(x, gate, up, down):
    mlp = MLP.__new__(MLP)
    torch.nn.Module.__init__(mlp)
    for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
        linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight.data = weight
        setattr(mlp, name, linear)
    return mlp(x).detach()


class Called(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, *rest):
        return self.function(x)


def layer(x, norm1, attend, norm2, mlp):
    made = DecoderLayer.__new__(DecoderLayer)
    torch.nn.Module.__init__(made)
    made.input_layernorm, made.post_attention_layernorm, made.mlp = Called(norm1), Called(norm2), Called(mlp)
    made.self_attn = Called(lambda x: (attend(x), None))
    return made(x, None, None)[0]


def weights():
    return randn(6, 4, seed=1), randn(6, 4, seed=2), randn(4, 6, seed=3)


def parts():
    """Four functions that do something different each."""
    return (lambda x: 2 * x), (lambda x: x.cumsum(1) - 1), (lambda x: x.square()), (lambda x: 0.5 * x + 3)


def unchanged(my):
    x = randn(1, 3, 2)
    my.layer(x, *parts())
    return x


def cases():
    numbers = [torch.full((1, 1), n) for n in (1.0, 3.0, 0.5)]
    two = torch.full((1, 1, 1), 2.0)
    return [
        Case("the text's example", "swiglu", lambda my: my.swiglu(two, *numbers),
             torch.full((1, 1, 1), 0.5 * 6 * 2 / (1 + math.exp(-2)))),
        Case("a gate of zeros lets nothing pass", "swiglu",
             lambda my: my.swiglu(randn(1, 2, 4), torch.zeros(6, 4), *weights()[1:]), torch.zeros(1, 2, 4)),
        Case("D = 4, F = 6", "swiglu", lambda my: my.swiglu(randn(2, 3, 4), *weights())),
        Case("parts that give zeros leave the input as it is", "layer",
             lambda my: my.layer(randn(1, 3, 2), lambda x: x, torch.zeros_like, lambda x: x, torch.zeros_like), randn(1, 3, 2)),
        Case("x = 1: norm1 doubles, attention adds 1, norm2 squares, the MLP halves", "layer",
             lambda my: my.layer(torch.ones(1, 1, 1), lambda x: 2 * x, lambda x: x + 1, lambda x: x * x, lambda x: x / 2),
             torch.full((1, 1, 1), 4 + 8.0)),
        Case("three positions", "layer", lambda my: my.layer(randn(1, 3, 2), *parts())),
        Case("the input is left unchanged", "layer", unchanged, randn(1, 3, 2)),
    ]  # fmt: skip


def mlp_with(act):
    return {"swiglu": lambda x, gate, up, down: act(x @ gate.T, x @ up.T) @ down.T}


def from_input(x, norm1, attend, norm2, mlp):
    return x + attend(norm1(x)) + mlp(norm2(x))


def post_norm(x, norm1, attend, norm2, mlp):
    x = norm1(x + attend(x))
    return norm2(x + mlp(x))


def one_norm(x, norm1, attend, norm2, mlp):
    return layer(x, norm1, attend, norm1, mlp)


def no_residual(x, norm1, attend, norm2, mlp):
    return mlp(norm2(attend(norm1(x))))


def first_residual_only(x, norm1, attend, norm2, mlp):
    return mlp(norm2(x + attend(norm1(x))))


def adds_the_normed(x, norm1, attend, norm2, mlp):
    x = norm1(x)
    x = x + attend(x)
    x = norm2(x)
    return x + mlp(x)


def in_place(x, norm1, attend, norm2, mlp):
    x += attend(norm1(x))
    x += mlp(norm2(x))
    return x


def first_in_place(x, norm1, attend, norm2, mlp):
    x += attend(norm1(x))
    return x + mlp(norm2(x))


LESSON = Lesson(
    4, "layer", "SwiGLU, and a layer", {"swiglu": swiglu, "layer": layer}, cases,
    (
        Mistake("silu on the wrong branch", "silu was applied to up. It belongs to the gate.", "silu(gate branch) * up branch.",
                mlp_with(lambda g, u: g * F.silu(u))),
        Mistake("silu on both branches", "up stays linear.", "apply silu to the gate alone.",
                mlp_with(lambda g, u: F.silu(g) * F.silu(u))),
        Mistake("silu of the product", "the branches were multiplied before the silu.", "apply silu to the gate, then multiply.",
                mlp_with(lambda g, u: F.silu(g * u))),
        Mistake("sigmoid instead of silu", "silu is x times its sigmoid.", "multiply the sigmoid by its own argument.",
                mlp_with(lambda g, u: g.sigmoid() * u)),
        Mistake("GELU instead of silu", "GELU looks much like silu, but the weights were trained with silu.",
                "use x * sigmoid(x).", mlp_with(lambda g, u: F.gelu(g) * u)),
        Mistake("no activation", "the gate branch is used as it is.", "apply silu to the gate branch.", mlp_with(lambda g, u: g * u)),
        Mistake("the MLP reads the layer's input", "the MLP does not see what attention has added.",
                "norm2 takes the sum of the input and the attention.", {"layer": from_input}),
        Mistake("norms after the sums", "that is the layout of the first transformers (post-norm). Here norms stand in front.",
                "norm the copy that enters a part; add to the sum that was not normed.", {"layer": post_norm}),
        Mistake("one norm for both parts", "norm1 was used twice.", "norm2 belongs to the MLP.", {"layer": one_norm}),
        Mistake("residual forgotten", "the input is not added to what the parts give.", "add x after each part.",
                {"layer": no_residual}),
        Mistake("second residual forgotten", "what the MLP gives replaces the sum.", "add the sum after attention to the MLP's result.",
                {"layer": first_residual_only}),
        Mistake("the normed input added", "the residual stream itself was normed.", "add to x, not to norm(x).",
                {"layer": adds_the_normed}),
        Mistake("x changed in place", "`x += ...` changes the caller's tensor.", "write `x = x + ...`.", {"layer": in_place}, ({"layer": first_in_place},)),
    ),
    {"swiglu": "x @ gate.T through silu, times x @ up.T; the product @ down.T.",
     "layer": "x plus attend of norm1 of x gives a new x; that plus mlp of norm2 of it is the result."},
    ("layer",),
)  # fmt: skip
