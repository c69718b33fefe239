"""Lessons as a learner might write them, by hand and without the package, and typical mistakes as edits of them.

``SOLUTIONS[n]`` is the text of a file. ``PLANTS[n]`` has (name of the mistake, text, what becomes of it); the text is there once.
"""

SOLUTIONS, PLANTS = {}, {}
TORCH = "import torch\nfrom torch.nn import functional as F\n"

SOLUTIONS[1] = """
import torch
def rms_norm(x, weight, eps):
    wide = x.float()
    mean = (wide ** 2).mean(dim=-1, keepdim=True)
    return (wide / torch.sqrt(mean + eps)).to(x.dtype) * weight
"""
PLANTS[1] = [
    ("the mean subtracted", "wide = x.float()", "wide = x.float() - x.float().mean(dim=-1, keepdim=True)"),
    ("the mean's dimension lost", ", keepdim=True", ""),
    ("eps outside the root", "torch.sqrt(mean + eps)", "(torch.sqrt(mean) + eps)"),
    ("rounded after the weight", ").to(x.dtype) * weight", " * weight.float()).to(x.dtype)"),
    ("divided by the standard deviation", "wide / torch.sqrt(mean + eps)", "wide / wide.std(dim=-1, keepdim=True)"),
    ("one added to the weight", "* weight", "* (1 + weight)"),
    ("multiplied by the root", "wide / torch", "wide * torch"),
    ("eps forgotten", "mean + eps", "mean"),
    ("sum instead of mean", ".mean(", ".sum("),
    ("normalised over the wrong dimension", "dim=-1", "dim=1"),
    ("norm in bfloat16", "x.float()", "x"),
    ("the result stays float32", ").to(x.dtype) * weight", ") * weight.float()"),
    ("weight forgotten", ".to(x.dtype) * weight", ".to(x.dtype)"),
]

SOLUTIONS[2] = """
import torch
def rope_angles(positions, head_dim, theta):
    rates = torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])
    a = positions.float().unsqueeze(1).unsqueeze(-1) * rates
    return torch.cos(a), torch.sin(a)
def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    a, b = x.float()[..., :half], x.float()[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
"""
PLANTS[2] = [
    ("interleaved instead of half-split rotation", "x.float()[..., :half], x.float()[..., half:]\n    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)",
     "x.float()[..., 0::2], x.float()[..., 1::2]\n    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)"),
    ("turned the other way", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin"),
    ("exponent i/K instead of 2i/K", "-2 * i", "-i"),
    ("the exponent without its minus", "-2 * i", "2 * i"),
    ("cosine and sine swapped", "torch.cos(a), torch.sin(a)", "torch.sin(a), torch.cos(a)"),
    ("rotation in bfloat16", "x.float()[..., :half], x.float()[..., half:]", "x[..., :half], x[..., half:]; cos, sin = cos.to(x.dtype), sin.to(x.dtype)"),
    ("positions counted from one", "positions.float()", "(positions.float() + 1)"),
    ("degrees instead of radians", "* rates\n", "* rates * 3.14159265358979 / 180\n"),
]  # fmt: skip

SOLUTIONS[3] = """
import torch
def visible(real, s):
    b, t = real.shape
    out = torch.zeros(b, 1, s, t, dtype=torch.bool)
    for row in range(b):
        for q in range(s):
            own = t - s + q
            for key in range(own + 1):
                out[row, 0, q, key] = real[row, key]
            out[row, 0, q, own] = True
    return out
def attention(q, k, v, mask):
    n = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(n, dim=1)
    v = v.repeat_interleave(n, dim=1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = torch.where(mask, scores, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
"""
PLANTS[3] = [
    ("mask off by one: a query does not see itself", "range(own + 1):\n                out[row, 0, q, key] = real[row, key]\n            out[row, 0, q, own] = True",
     "range(own):\n                out[row, 0, q, key] = real[row, key]"),
    ("mask off by one: a query sees the next column", "range(own + 1)", "range(min(own + 2, t))"),
    ("queries counted from the first column", "own = t - s + q\n            for key in range(own + 1):\n                out[row, 0, q, key] = real[row, key]\n            out[row, 0, q, own] = True",
     "own = q\n            for key in range(own + 1):\n                out[row, 0, q, key] = real[row, key]"),
    ("padding attended", "= real[row, key]", "= True"),
    ("a padding column sees nothing", "            out[row, 0, q, own] = True\n", ""),
    ("padding columns see each other", "= real[row, key]", "= real[row, key] or not real[row, own]"),
    ("mask inverted", "torch.where(mask, scores, -torch.inf)", "torch.where(mask, -torch.inf, scores)"),
    ("mask not used", "    scores = torch.where(mask, scores, -torch.inf)\n", ""),
    ("key/value heads not repeated", "    k = k.repeat_interleave(n, dim=1)\n    v = v.repeat_interleave(n, dim=1)\n", ""),
    ("scale forgotten", " / q.shape[-1] ** 0.5", ""),
    ("scaled by K instead of its root", "q.shape[-1] ** 0.5", "q.shape[-1]"),
    ("heads share the wrong keys", "k = k.repeat_interleave(n, dim=1)\n    v = v.repeat_interleave(n, dim=1)", "k = k.repeat(1, n, 1, 1)\n    v = v.repeat(1, n, 1, 1)"),
    ("softmax over the queries", "-torch.inf)\n    return torch.softmax(scores, dim=-1)", "-1e9)\n    return torch.softmax(scores, dim=-2)"),
    ("masked after the softmax", "    scores = torch.where(mask, scores, -torch.inf)\n    return torch.softmax(scores, dim=-1) @ v",
     "    return (torch.softmax(scores, dim=-1) * mask) @ v"),
]  # fmt: skip

SOLUTIONS[4] = """
import torch
def swiglu(x, gate, up, down):
    g, u = x @ gate.T, x @ up.T
    return (g / (1 + torch.exp(-g)) * u) @ down.T
def layer(x, norm1, attend, norm2, mlp):
    middle = x + attend(norm1(x))
    return middle + mlp(norm2(middle))
"""
PLANTS[4] = [
    ("silu on the wrong branch", "g / (1 + torch.exp(-g)) * u", "u / (1 + torch.exp(-u)) * g"),
    ("sigmoid instead of silu", "g / (1 + torch.exp(-g))", "1 / (1 + torch.exp(-g))"),
    ("no activation", "g / (1 + torch.exp(-g)) * u", "g * u"),
    ("the MLP reads the layer's input", "norm2(middle)", "norm2(x)"),
    ("one norm for both parts", "norm2(middle)", "norm1(middle)"),
    ("second residual forgotten", "return middle + mlp", "return mlp"),
    ("norms after the sums", "x + attend(norm1(x))\n    return middle + mlp(norm2(middle))", "norm1(x + attend(x))\n    return norm2(middle + mlp(middle))"),
    ("x changed in place", "middle = x + attend(norm1(x))", "x += attend(norm1(x)); middle = x"),
]

SOLUTIONS[5] = """
import torch
class Cache:
    def __init__(self, num_layers):
        self.length = 0
        self.keys, self.values = [None] * num_layers, [None] * num_layers
        self.ids = self.real = None
    def write(self, layer, keys, values):
        if self.keys[layer] is not None:
            keys = torch.cat([self.keys[layer][:, :, :self.length], keys], dim=2)
            values = torch.cat([self.values[layer][:, :, :self.length], values], dim=2)
        self.keys[layer], self.values[layer] = keys, values
        return keys, values
    def advance(self, positions, real):
        self.ids = positions if self.ids is None else torch.cat([self.ids[:, :self.length], positions], dim=1)
        self.real = real if self.real is None else torch.cat([self.real[:, :self.length], real], dim=1)
        self.length += positions.shape[1]
    def next_positions(self):
        out = []
        for ids, real in zip(self.ids[:, :self.length], self.real[:, :self.length]):
            used = ids[real]
            out.append(int(used[-1]) + 1 if len(used) else 0)
        return torch.tensor(out)
    def truncate(self, length):
        self.length = length
"""
PLANTS[5] = [
    ("the length moves in write and in advance", "        self.keys[layer], self.values[layer] = keys, values\n",
     "        self.length += keys.shape[2] - (0 if self.keys[layer] is None else self.length)\n        self.keys[layer], self.values[layer] = keys, values\n"),
    ("positions behind truncated ones", "self.ids is None else torch.cat([self.ids[:, :self.length], positions], dim=1)\n        self.real = real if self.real is None else torch.cat([self.real[:, :self.length], real], dim=1)",
     "self.ids is None else torch.cat([self.ids, positions], dim=1)\n        self.real = real if self.real is None else torch.cat([self.real, real], dim=1)"),
    ("only the new columns returned", "        self.keys[layer], self.values[layer] = keys, values\n        return keys, values",
     "        new = keys.shape[2] - (self.length if self.keys[layer] is not None else 0)\n        self.keys[layer], self.values[layer] = keys, values\n        return keys[:, :, -new:], values[:, :, -new:]"),
    ("keys and values swapped", "return keys, values", "return values, keys"),
    ("joined along the heads", "keys], dim=2)\n            values = torch.cat([self.values[layer][:, :, :self.length], values], dim=2)",
     "keys], dim=1)\n            values = torch.cat([self.values[layer][:, :, :self.length], values], dim=1)"),
    ("the length counts real tokens", "self.length += positions.shape[1]", "self.length += int(real[0].sum())"),
    ("padding counted as position 0", "used = ids[real]", "used = ids.sort().values"),
    ("positions count padding", "int(used[-1]) + 1 if len(used) else 0", "self.length"),
    ("position off by one", "int(used[-1]) + 1", "int(used[-1])"),
    ("real columns counted", "int(used[-1]) + 1", "len(used)"),
    ("position of the last column", "used = ids[real]", "used = ids"),
    ("one store for all layers", "self, layer, keys, values):", "self, layer, keys, values):\n        layer = 0"),
    ("columns behind the length kept", "keys = torch.cat([self.keys[layer][:, :, :self.length], keys], dim=2)\n            values = torch.cat([self.values[layer][:, :, :self.length], values], dim=2)",
     "keys = torch.cat([self.keys[layer], keys], dim=2)\n            values = torch.cat([self.values[layer], values], dim=2)"),
]  # fmt: skip

SOLUTIONS[6] = """
import torch
def penalise(logits, seen, penalty):
    lower = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lower, logits)
def probabilities(logits, temperature, top_k, top_p):
    if temperature == 0:
        out = torch.zeros_like(logits, dtype=torch.float32)
        out[torch.arange(len(logits)), logits.argmax(dim=1)] = 1
        return out
    x = logits.float() / temperature
    for row in x:
        if 0 < top_k < len(row):
            row[row < sorted(row.tolist())[-top_k]] = -torch.inf
        if top_p < 1:
            p = torch.softmax(row, 0)
            total, kept = 0.0, []
            for i in sorted(range(len(row)), key=lambda i: -float(p[i])):
                if total >= top_p:
                    row[i] = -torch.inf
                total += float(p[i])
    return torch.softmax(x, dim=1)
"""
PLANTS[6] = [
    ("negative logits become likelier by the penalty", "torch.where(logits > 0, logits / penalty, logits * penalty)", "logits / penalty"),
    ("multiplied by the temperature", "logits.float() / temperature", "logits.float() * temperature"),
    ("top-k keeps one token too many", "[-top_k]", "[-top_k - 1]"),
    ("top-p drops the token that reaches p", "                if total >= top_p:\n                    row[i] = -torch.inf\n                total += float(p[i])",
     "                total += float(p[i])\n                if total >= top_p:\n                    row[i] = -torch.inf"),
    ("temperature 0 divides by zero", "if temperature == 0:", "if False:"),
    ("removed logits set to zero", "[-top_k]] = -torch.inf", "[-top_k]] = 0"),
    ("temperature after the softmax", "logits.float() / temperature", "logits.float()"),
    ("the penalty for tokens that have not occurred", "torch.where(seen, lower, logits)", "torch.where(seen, logits, lower)"),
]  # fmt: skip

SOLUTIONS[7] = """
import torch
def grid(width, height, tile, max_tiles):
    every = []
    for columns in range(1, max_tiles + 1):
        for rows in range(1, max_tiles + 1):
            if columns * rows <= max_tiles:
                every.append((columns, rows))
    best, nearest = None, 1e9
    for columns, rows in sorted(every, key=lambda g: g[0] * g[1]):
        d = abs(width / height - columns / rows)
        if d < nearest or (d == nearest and width * height > 0.5 * tile * tile * columns * rows):
            best, nearest = (columns, rows), d
    return best
def normalise(pixels, mean, std):
    x = pixels.permute(2, 0, 1) / 255
    return (x - mean[:, None, None]) / std[:, None, None]
def cut(pixels, tile):
    out = []
    for y in range(0, pixels.shape[1], tile):
        for x in range(0, pixels.shape[2], tile):
            out.append(pixels[:, y:y + tile, x:x + tile])
    return torch.stack(out)
"""
PLANTS[7] = [
    ("rows and columns swapped", "return best", "return best[1], best[0]"),
    ("height and width swapped", "width / height - columns", "height / width - columns"),
    ("the first of equally near grids", "width * height > 0.5 * tile * tile * columns * rows", "False"),
    ("the largest of equally near grids", "width * height > 0.5 * tile * tile * columns * rows", "True"),
    ("not divided by 255", " / 255", " / 1.0"),
    ("channels cut out by view", "pixels.permute(2, 0, 1)", "pixels.reshape(3, pixels.shape[0], pixels.shape[1])"),
    ("deviation forgotten", " / std[:, None, None]", ""),
    ("tiles column by column", "for y in range(0, pixels.shape[1], tile):\n        for x in range(0, pixels.shape[2], tile):",
     "for x in range(0, pixels.shape[2], tile):\n        for y in range(0, pixels.shape[1], tile):"),
]  # fmt: skip

SOLUTIONS[8] = TORCH + """
def embed(pixels, weight, bias, class_token, position):
    p = weight.shape[-1]
    rows = []
    for y in range(0, pixels.shape[2], p):
        for x in range(0, pixels.shape[3], p):
            patch = pixels[:, :, y:y + p, x:x + p]
            rows.append(patch.flatten(1) @ weight.flatten(1).T + bias)
    token = class_token.expand(len(pixels), -1)
    return torch.stack([token] + rows, dim=1) + position
def vision_attention(x, qkv, qkv_bias, proj, proj_bias, heads):
    n, p, e = x.shape
    q, k, v = F.linear(x, qkv, qkv_bias).chunk(3, dim=-1)
    size = e // heads
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / size ** 0.5
        out.append(torch.softmax(scores, dim=-1) @ v[..., part])
    return F.linear(torch.cat(out, dim=-1), proj, proj_bias)
def block(x, norm1, attend, ls1, norm2, mlp, ls2):
    x = x + ls1 * attend(norm1(x))
    return x + ls2 * mlp(norm2(x))
"""
PLANTS[8] = [
    ("patches column by column", "for y in range(0, pixels.shape[2], p):\n        for x in range(0, pixels.shape[3], p):",
     "for x in range(0, pixels.shape[3], p):\n        for y in range(0, pixels.shape[2], p):"),
    ("the class token at the end", "[token] + rows", "rows + [token]"),
    ("no position for the class token", ", dim=1) + position", ", dim=1) + torch.cat([0 * position[:1], position[1:]])"),
    ("scale forgotten", " / size ** 0.5", ""),
    ("heads before q, k and v", "F.linear(x, qkv, qkv_bias).chunk(3, dim=-1)",
     "F.linear(x, qkv, qkv_bias).view(n, p, heads, 3, -1).permute(3, 0, 1, 2, 4).flatten(3)"),
    ("causal mask in the tower", "scores = q[", "scores = torch.full((p, p), -torch.inf).triu(1) + q["),
    ("layer scale forgotten", "ls1 * attend(norm1(x))\n    return x + ls2 *", "attend(norm1(x))\n    return x +"),
    ("one layer scale for both parts", "x + ls2", "x + ls1"),
]  # fmt: skip

SOLUTIONS[9] = TORCH + """
def pixel_shuffle(x, factor):
    n, rows, columns, width = x.shape
    parts = [x[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
    return torch.cat(parts, dim=-1)
def image_rows(x, factor, scale, w1, b1, w2, b2):
    x = x[:, 1:] * scale
    side = int(x.shape[1] ** 0.5)
    x = pixel_shuffle(x.reshape(len(x), side, side, -1), factor)
    x = x.reshape(len(x), -1, x.shape[-1])
    h = F.linear(x, w1, b1)
    h = h * (1 + torch.erf(h / 2 ** 0.5)) / 2
    return F.linear(h, w2, b2)
"""
PLANTS[9] = [
    ("height and width swapped in the shuffle", "x[:, i::factor, j::factor]", "x[:, j::factor, i::factor]"),
    ("strips instead of squares", "parts = [x[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]\n    return torch.cat(parts, dim=-1)",
     "return x.reshape(n, rows // factor, columns // factor, -1)"),
    ("channels in front", "torch.cat(parts, dim=-1)", "torch.stack(parts, dim=-1).flatten(3)"),
    ("the last patch dropped for the class token", "x[:, 1:] * scale", "x[:, :-1] * scale"),
    ("feature scale forgotten", "x[:, 1:] * scale", "x[:, 1:]"),
    ("GELU by tanh", "h * (1 + torch.erf(h / 2 ** 0.5)) / 2", "F.gelu(h, approximate='tanh')"),
    ("ReLU instead of GELU", "h * (1 + torch.erf(h / 2 ** 0.5)) / 2", "h.clamp(min=0)"),
    ("GELU forgotten", "    h = h * (1 + torch.erf(h / 2 ** 0.5)) / 2\n", ""),
]  # fmt: skip

SOLUTIONS[10] = """
import torch
def splice_row(ids, embed, features, placeholder):
    parts, nth = [], 0
    for i in range(len(ids)):
        if ids[i] == placeholder:
            parts.append(features[nth])
            nth += 1
        else:
            parts.append(embed(ids[i:i + 1]))
    return torch.cat(parts)
def splice(rows, embed, features, placeholder, side):
    done, used = [], 0
    for ids in rows:
        n = int((ids == placeholder).sum())
        done.append(splice_row(ids, embed, features[used:used + n], placeholder))
        used += n
    longest = max(len(x) for x in done)
    embeds = torch.zeros(len(rows), longest, done[0].shape[1])
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, x in enumerate(done):
        start = longest - len(x) if side == "left" else 0
        embeds[b, start:start + len(x)] = x
        mask[b, start:start + len(x)] = True
        positions[b, start:start + len(x)] = torch.arange(len(x))
    return embeds, mask, positions
"""
PLANTS[10] = [
    ("the placeholder kept", "            parts.append(features[nth])", "            parts.append(embed(torch.tensor([0])))\n            parts.append(features[nth])"),
    ("position ids not moved after a picture", "= torch.arange(len(x))",
     "= torch.tensor([p for p, i in enumerate(rows[b].tolist()) for _ in range(1 if i != placeholder else (len(x) - len(rows[b])) // max(1, int((rows[b] == placeholder).sum())) + 1)])"),
    ("every row takes the first pictures", "        used += n\n", ""),
    ("positions count padding", "positions[b, start:start + len(x)] = torch.arange(len(x))", "positions[b] = torch.arange(longest)"),
    ("positions count padding", "= torch.arange(len(x))", "= torch.arange(start, start + len(x))"),
    ("positions counted from one", "= torch.arange(len(x))", "= torch.arange(1, len(x) + 1)"),
    ("the text behind the last picture lost", "    return torch.cat(parts)", "    while len(parts) > 1 and not any(parts[-1] is f for f in features):\n        parts.pop()\n    return torch.cat(parts) if features else embed(ids[:0])"),
    ("one row for a picture", "parts.append(features[nth])", "parts.append(features[nth][:1])"),
    ("padding always on the right", 'if side == "left" else 0', "if False else 0"),
    ("padding on the wrong side", 'side == "left"', 'side == "right"'),
    ("padding attended", "mask[b, start:start + len(x)] = True", "mask[b] = True"),
    ("padding embedded", "embeds = torch.zeros(len(rows), longest, done[0].shape[1])", "embeds = embed(torch.zeros(len(rows) * longest).long()).reshape(len(rows), longest, -1).clone()"),
]  # fmt: skip

SOLUTIONS[11] = """
import math
import torch
from torch.nn import functional as F
def mel(f):
    return 1127 * math.log(1 + f / 700)
def mel_bank(bins, fft_size, sample_rate):
    edges = torch.linspace(mel(20), mel(sample_rate / 2), bins + 2, dtype=torch.float64).tolist()
    out = torch.zeros(fft_size // 2 + 1, bins)
    for f in range(fft_size // 2 + 1):
        m = mel(f * sample_rate / fft_size)
        for b in range(bins):
            left, centre, right = edges[b:b + 3]
            out[f, b] = max(0, min((m - left) / (centre - left), (right - m) / (right - centre)))
    return out
def log_mel(samples, bank):
    window = torch.hann_window(400, periodic=False) ** 0.85
    rows = []
    for start in range(0, len(samples) - 399, 160):
        x = samples[start:start + 400] * 32768
        x = x - x.mean()
        x = x - 0.97 * torch.cat([x[:1], x[:-1]])
        power = torch.fft.rfft(x * window, n=512).abs() ** 2
        rows.append(torch.log((power @ bank).clamp(min=1.1920929e-07)))
    return torch.stack(rows)
def subsample(x, w1, b1, w2, b2, w3, b3):
    x = torch.relu(F.conv2d(x.unsqueeze(1), w1, b1, stride=2))
    x = torch.relu(F.conv2d(x, w2, b2, stride=2))
    x = x.permute(0, 2, 1, 3)
    return F.linear(x.reshape(x.shape[0], x.shape[1], -1), w3, b3)
"""
PLANTS[11] = [
    ("bins equally wide in hertz", "return 1127 * math.log(1 + f / 700)", "return f"),
    ("bins from 0 Hz", "mel(20)", "mel(0)"),
    ("samples in -1..1", " * 32768", ""),
    ("the frame's mean kept", "        x = x - x.mean()\n", ""),
    ("pre-emphasis forgotten", "        x = x - 0.97 * torch.cat([x[:1], x[:-1]])\n", ""),
    ("amplitude instead of power", ".abs() ** 2", ".abs()"),
    ("logarithm to the base 10", "torch.log(", "torch.log10("),
    ("floor forgotten", ".clamp(min=1.1920929e-07)", ""),
    ("the periodic Hann window", ", periodic=False", ""),
    ("second ReLU forgotten", "torch.relu(F.conv2d(x, w2, b2, stride=2))", "F.conv2d(x, w2, b2, stride=2)"),
    ("bins outside, channels inside", "x.permute(0, 2, 1, 3)", "x.permute(0, 2, 3, 1)"),
    ("padded convolutions", "w1, b1, stride=2))\n    x = torch.relu(F.conv2d(x, w2, b2, stride=2))", "w1, b1, stride=2, padding=1))\n    x = torch.relu(F.conv2d(x, w2, b2, stride=2, padding=1))"),
]  # fmt: skip

SOLUTIONS[12] = TORCH + """
def decode(my, weights, config, x, positions, real, cache):
    b, s, _ = x.shape
    size, eps = config.head_dim, config.rms_norm_eps
    cos, sin = my.rope_angles(positions, size, config.rope_theta)
    mask = my.visible(real, s)
    for n in range(config.num_hidden_layers):
        def w(name):
            return weights[f"model.layers.{n}.{name}"]
        def project(y, name):
            out = F.linear(y, w(f"self_attn.{name}_proj.weight"), w(f"self_attn.{name}_proj.bias"))
            return out.view(b, s, -1, size).transpose(1, 2)
        def attend(y):
            q, k, v = project(y, "q"), project(y, "k"), project(y, "v")
            q, k = my.rotate(q, cos, sin), my.rotate(k, cos, sin)
            k, v = cache.write(n, k, v)
            out = my.attention(q, k, v, mask)
            return F.linear(out.transpose(1, 2).reshape(b, s, -1), w("self_attn.o_proj.weight"))
        def mlp(y):
            return my.swiglu(y, w("mlp.gate_proj.weight"), w("mlp.up_proj.weight"), w("mlp.down_proj.weight"))
        def norm1(y):
            return my.rms_norm(y, w("input_layernorm.weight"), eps)
        def norm2(y):
            return my.rms_norm(y, w("post_attention_layernorm.weight"), eps)
        x = my.layer(x, norm1, attend, norm2, mlp)
    cache.advance(positions, real[:, -s:])
    return my.rms_norm(x, weights["model.norm.weight"], eps)
def answer(my, weights, config, ids, features, placeholder, stop, limit):
    table, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    x, real, positions = my.splice([ids], lambda i: table[i], features, placeholder, "right")
    cache, out = my.Cache(config.num_hidden_layers), []
    for _ in range(limit):
        hidden = decode(my, weights, config, x, positions, real, cache)
        token = int((head @ hidden[0, -1]).argmax())
        if token in stop:
            break
        out.append(token)
        x = table[token].view(1, 1, -1)
        positions = positions[:, -1:] + 1
        real = torch.cat([real, torch.ones(1, 1, dtype=torch.bool)], dim=1)
    return out
"""
PLANTS[12] = [
    ("final norm forgotten", 'return my.rms_norm(x, weights["model.norm.weight"], eps)', "return x"),
    ("biases forgotten", ', w(f"self_attn.{name}_proj.bias"))', ")"),
    ("keys not turned", "q, k = my.rotate(q, cos, sin), my.rotate(k, cos, sin)", "q = my.rotate(q, cos, sin)"),
    ("the cache does not advance", "    cache.advance(positions, real[:, -s:])\n", ""),
    ("the first row instead of the last", "hidden[0, -1]", "hidden[0, 0]"),
    ("the position does not move", "positions[:, -1:] + 1", "positions[:, -1:]"),
    ("the end token is part of the answer", "        if token in stop:\n            break\n        out.append(token)\n", "        out.append(token)\n        if token in stop:\n            break\n"),
    ("the end token is ignored", "        if token in stop:\n            break\n", ""),
]  # fmt: skip

SOLUTIONS[13] = """
import torch
def penalise_recent(logits, recent, penalty):
    out = logits.clone()
    for token in recent:
        out[token] = out[token] / penalty
    return out
def codes(step, start, end, window, penalty, limit):
    out, last = [start], start
    for _ in range(limit):
        recent = out[-window:] if window > 0 else []
        last = int(penalise_recent(step(last), recent, penalty).argmax())
        if last == end:
            break
        out.append(last)
    return out[1:]
def pieces(vocode, tokens, chunk, radius, hop):
    out = []
    for start in range(0, len(tokens), chunk):
        stop = min(start + chunk, len(tokens))
        first, last = max(0, start - radius), min(len(tokens), stop + radius)
        sound = vocode(tokens[first:last])
        out.append(sound[(start - first) * hop:(stop - first) * hop])
    return out
"""
PLANTS[13] = [
    ("a token penalised once", "for token in recent:", "for token in set(recent):"),
    ("negative logits multiplied", "out[token] / penalty", "out[token] / penalty if out[token] > 0 else out[token] * penalty"),
    ("the end token spoken", "        if last == end:\n            break\n        out.append(last)\n", "        out.append(last)\n        if last == end:\n            break\n"),
    ("the start token spoken", "return out[1:]\ndef pieces", "return out\ndef pieces"),
    ("the start token not counted", "out[-window:] if window > 0", "out[1:][-window:] if window > 0"),
    ("no neighbours", "max(0, start - radius), min(len(tokens), stop + radius)", "start, stop"),
    ("neighbours on the left alone", "min(len(tokens), stop + radius)", "stop"),
    ("the neighbours' samples kept", "sound[(start - first) * hop:(stop - first) * hop]", "sound"),
]  # fmt: skip

SOLUTIONS[14] = """
import torch
def quantise(weight, group):
    integers = torch.zeros(weight.shape, dtype=torch.int8)
    scales = torch.zeros(weight.shape[0], weight.shape[1] // group)
    for o in range(weight.shape[0]):
        for g in range(weight.shape[1] // group):
            part = weight[o, g * group:(g + 1) * group]
            scale = max(float(part.abs().max()) / 127, 1e-38)
            scales[o, g] = scale
            integers[o, g * group:(g + 1) * group] = torch.round(part / scale).int().to(torch.int8)
    return integers, scales
def linear8(x, integers, scales, bias):
    out = bias.expand(len(x), -1).clone()
    group = integers.shape[1] // scales.shape[1]
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        out += x[:, part] @ integers[:, part].float().T * scales[:, g]
    return out
"""
PLANTS[14] = [
    ("cut off instead of rounded", "torch.round(part / scale)", "(part / scale)"),
    ("one scale for the whole matrix", "float(part.abs().max())", "float(weight.abs().max())"),
    ("128 steps", "/ 127", "/ 128"),
    ("the maximum without its sign removed", "part.abs().max()", "part.max()"),
    ("one scale a row", "float(part.abs().max())", "float(weight[o].abs().max())"),
    ("scale forgotten in the product", " * scales[:, g]", ""),
    ("bias forgotten", "bias.expand(len(x), -1).clone()", "torch.zeros(len(x), len(bias))"),
    ("rounded up", "torch.round(", "torch.ceil("),
]
