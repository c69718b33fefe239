"""The vision tower (InternViT), the pixel shuffle behind it, and the projector into the decoder.

    tiles [N, 3, 448, 448] -> embeddings and layers [N, 1025, 1024] -> pixel shuffle [N, 256, 4096]
    -> projector [N, 256, 3584]

A tile has 32 x 32 patches of 14 x 14 pixels, and a class token in front. The shuffle joins 2 x 2 patches, so a tile
takes 256 positions of the prompt.

N tiles, X, Y their size, P positions, E width, H heads, K head size, F MLP, I positions in the prompt, D decoder width.

Test: ``pytest tests/test_vision.py``
"""

import torch
from torch import nn
from torch.nn import functional as F


class Embeddings(nn.Module):
    """A convolution makes patches, a class token is put in front, and a learned position embedding is added to each."""

    def __init__(self, config):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, config.grid**2 + 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch)

    def forward(self, pixels):
        """Shapes: [N, 3, Y, X] -> [N, P, E]"""
        patches = self.patch_embedding(pixels)  # [N, E, rows, columns]
        n, _, rows, columns = patches.shape
        patches = patches.flatten(2).mT  # [N, rows*columns, E]
        x = torch.cat([self.class_embedding.expand(n, -1, -1), patches], 1)  # [N, P, E]
        return x + self.positions(rows, columns)  # [N, P, E]

    def positions(self, rows, columns):
        """The position embeddings [1, P, E], interpolated (in float32) for an image of another size."""
        table = self.position_embedding
        side = round((table.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        grid = table[:, 1:].mT.unflatten(2, (side, side)).float()  # [1, E, side, side]
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)  # [1, E, rows, columns]
        return torch.cat([table[:, :1], grid.flatten(2).mT.to(table.dtype)], 1)  # [1, rows*columns+1, E]


class VisionAttentionCore(nn.Module):
    """Attention without its projections: a module of its own, so that a hook sees the q, k and v that were used."""

    def forward(self, q, k, v, need_weights=False):
        """Every position sees all positions. The weights are None unless they are requested.

        Shapes: q, k and v [N, H, P, K] -> [N, H, P, K] and the weights [N, H, P, P], whose rows sum to one.
        """
        if not need_weights:
            return F.scaled_dot_product_attention(q, k, v), None
        scores = (q * q.shape[-1] ** -0.5) @ k.mT  # [N, H, P, P]
        weights = scores.float().softmax(-1).to(q.dtype)  # [N, H, P, P]
        return weights @ v, weights


class VisionAttention(nn.Module):
    """Multi-head self-attention without a mask."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.core = VisionAttentionCore()

    def forward(self, x):
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [N, P, 3, H, K]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [N, H, P, K]
        out, _ = self.core(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))  # [N, P, E]


class VisionMLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        hidden = F.gelu(self.fc1(x))  # [N, P, F]
        return self.fc2(hidden)  # [N, P, E]


class VisionLayer(nn.Module):
    """Attention, then the MLP. Each has a LayerNorm in front, is scaled by channel, and is added to its input."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.attn, self.mlp = VisionAttention(config), VisionMLP(config)
        self.norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(width, config.layer_norm_eps)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1  # [N, P, E]
        return x + self.mlp(self.norm2(x)) * self.ls2  # [N, P, E]


class VisionEncoder(nn.Module):
    """The layers. They are a module of their own because their names in the checkpoint begin with ``encoder.``."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)  # [N, P, E]
        return x


def pixel_shuffle(x, factor):
    """Joins ``factor`` x ``factor`` neighbours to one position, with their channels side by side (space to depth).

    The new channels are in the order (row, column, channel). Row and column count within the square of neighbours.
    Shapes: [N, rows, columns, E] -> [N, rows/factor, columns/factor, factor*factor*E]
    Raises: ValueError if ``factor`` does not divide Y and X.
    Source: upstream internvit_encoder.py:41-53.
    """
    n, rows, columns, width = x.shape
    if rows % factor or columns % factor:
        raise ValueError(f"a grid of {rows} x {columns} patches cannot be shuffled by {factor}: it must divide both")
    x = x.view(n, rows // factor, factor, columns // factor, factor, width)
    return x.transpose(2, 3).flatten(3)  # [N, rows/factor, columns/factor, factor*factor*E]


class VisionTower(nn.Module):
    """InternViT and the pixel shuffle: from pixels to the features that the projector takes.

    Source: upstream internvit/modeling_intern_vit.py and internvit_encoder.py; checkpoint prefix
    ``model.vision_tower.vision_tower.``
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings, self.encoder = Embeddings(config), VisionEncoder(config)

    def forward(self, pixels):
        """Features of normalised tiles. Height and width may differ from ``config.image_size``.

        Shapes: [N, 3, Y, X] -> [N, I, factor*factor*E]
        Raises: ValueError if height or width is not a multiple of patch size * shuffle factor.
        """
        c = self.config
        self._check(pixels)
        rows, columns = pixels.shape[2] // c.patch_size, pixels.shape[3] // c.patch_size
        x = self.encoder(self.embeddings(pixels))  # [N, P, E]
        if not c.keep_class_token:
            x = x[:, 1:]  # [N, rows*columns, E]
        x = x * c.feature_scale  # quirk: as in upstream, features are halved and no LayerNorm follows the layers
        if c.shuffle > 1:
            x = pixel_shuffle(x.unflatten(1, (rows, columns)), c.shuffle).flatten(1, 2)  # [N, I, factor*factor*E]
        return x

    def _check(self, pixels):
        c = self.config
        if pixels.dim() != 4 or pixels.shape[1] != c.num_channels:
            raise ValueError(f"pixels must be [N, {c.num_channels}, height, width], got {list(pixels.shape)}")
        if pixels.shape[2] % c.patch_size or pixels.shape[3] % c.patch_size:
            raise ValueError(f"height and width must be multiples of {c.patch_size}, got {list(pixels.shape)}")


class Projector(nn.Sequential):
    """Linear, erf GELU, Linear: from features to rows as wide as the decoder's (called "mlp2x_gelu" upstream).
    InternVL has a LayerNorm in front of them.

    Shapes: [N, I, factor*factor*E] -> [N, I, D]
    Source: checkpoint prefix ``model.mm_projector.``; InternVL's ``mlp1.``
    """

    def __init__(self, feature_size, width, norm=False):
        mlp = nn.Linear(feature_size, width), nn.GELU(), nn.Linear(width, width)
        super().__init__(*[nn.LayerNorm(feature_size)] * norm, *mlp)
