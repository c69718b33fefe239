"""The eye: tiles of pixels -> InternViT -> pixel shuffle -> projector -> rows as wide as the decoder.

    pixels [N, 3, 448, 448] -> patches [N, 1025, 1024] -> shuffled [N, 256, 4096] -> [N, 256, D]

Letters here: N tiles, P positions in the tower (patches and the class token), C tower width,
H heads, K head size, F MLP width, X and Y the grid's columns and rows, R the shuffle, V positions
given to the decoder, D its width.

Test: ``pytest tests/test_vision.py``
"""

import torch
from torch import nn
from torch.nn import functional as F


class Embeddings(nn.Module):
    """Patches by a convolution, the class token in front, learned positions added."""

    def __init__(self, config):
        super().__init__()
        c, size = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, c))
        self.position_embedding = nn.Parameter(torch.zeros(1, config.grid**2 + 1, c))
        self.patch_embedding = nn.Conv2d(config.num_channels, c, size, size)

    def forward(self, pixels):
        patches = self.patch_embedding(pixels)  # [N, C, Y, X]
        n, _, rows, columns = patches.shape
        x = torch.cat([self.class_embedding.expand(n, -1, -1), patches.flatten(2).mT], 1)  # [N, P, C]
        return x + self.positions(rows, columns)

    def positions(self, rows, columns):
        """The learned grid, stretched (bicubic, in float32) where a picture's grid is another."""
        table = self.position_embedding
        side = round((table.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        grid = table[:, 1:].mT.unflatten(2, (side, side)).float()  # [1, C, side, side]
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)  # [1, C, Y, X]
        return torch.cat([table[:, :1], grid.flatten(2).mT.to(table.dtype)], 1)


class VisionAttention(nn.Module):
    """Every position sees every other."""

    def __init__(self, config):
        super().__init__()
        c = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(c, 3 * c, bias=config.qkv_bias)
        self.proj = nn.Linear(c, c)

    def forward(self, x):
        n, p, c = x.shape
        qkv = self.qkv(x).view(n, p, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)  # [3, N, H, P, K]
        out = F.scaled_dot_product_attention(*qkv)  # [N, H, P, K]
        return self.proj(out.transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    """Two linear maps with the exact (erf) GELU between them."""

    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """Attention and MLP behind their norms, each branch scaled per channel by ls1 and ls2."""

    def __init__(self, config):
        super().__init__()
        c = config.hidden_size
        self.attn, self.mlp = VisionAttention(config), VisionMLP(config)
        self.norm1 = nn.LayerNorm(c, config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(c, config.layer_norm_eps)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(c)), nn.Parameter(torch.ones(c))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1  # [N, P, C]
        return x + self.mlp(self.norm2(x)) * self.ls2


class VisionEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)  # [N, P, C]
        return x


def pixel_shuffle(x, factor):
    """Space to depth: ``factor`` x ``factor`` neighbours become one position with their channels side by side.

    Channels come in the order (row offset, column offset, channel); the grid is row by row.
    Shapes: [N, Y, X, C] -> [N, Y/R, X/R, R*R*C].
    Source: upstream internvit_encoder.py:41-53.
    """
    n, rows, columns, c = x.shape
    if rows % factor or columns % factor:
        raise ValueError(f"a grid of {rows} x {columns} patches cannot be shuffled by {factor}")
    x = x.view(n, rows // factor, factor, columns // factor, factor, c)  # [N, Y/R, R, X/R, R, C]
    return x.transpose(2, 3).flatten(3)


class VisionTower(nn.Module):
    """InternViT and the shuffle: pixels to features.

    Source: upstream internvit/modeling_intern_vit.py and internvit_encoder.py; checkpoint prefix
    ``model.vision_tower.vision_tower.``
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings, self.encoder = Embeddings(config), VisionEncoder(config)

    def forward(self, pixels):
        """Shapes: [N, 3, Y, X] normalised pixels, any multiple of the patch -> [N, V, R*R*C]."""
        c = self.config
        if pixels.dim() != 4 or pixels.shape[1] != c.num_channels:
            raise ValueError(f"pixels must be [N, {c.num_channels}, height, width], got {list(pixels.shape)}")
        if pixels.shape[2] % c.patch_size or pixels.shape[3] % c.patch_size:
            raise ValueError(f"height and width must be multiples of {c.patch_size}, got {list(pixels.shape)}")
        rows, columns = pixels.shape[2] // c.patch_size, pixels.shape[3] // c.patch_size
        x = self.encoder(self.embeddings(pixels))  # [N, P, C]
        if not c.keep_class_token:
            x = x[:, 1:]  # [N, Y*X, C]
        x = x * c.feature_scale  # quirk: see VisionConfig; there is no final norm either
        if c.shuffle > 1:
            x = pixel_shuffle(x.unflatten(1, (rows, columns)), c.shuffle).flatten(1, 2)  # [N, V, R*R*C]
        return x


class Projector(nn.Sequential):
    """Linear, erf GELU, Linear: features to rows of the decoder's width ("mlp2x_gelu"), prefix ``model.mm_projector.``"""

    def __init__(self, feature_size, width):
        super().__init__(nn.Linear(feature_size, width), nn.GELU(), nn.Linear(width, width))
