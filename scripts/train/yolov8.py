"""YOLOv8-detect in plain PyTorch, for any channel widths, depths and class count.

Modules are named so that `state_dict()` has the keys that YOLOv8 checkpoints
usually have (`model.0.conv.weight`, `model.2.m.0.cv1.bn.bias`, ...).
"""

import torch
import torch.nn.functional as F
from torch import nn

REG_MAX = 16  # bins per box side
STRIDES = (8, 16, 32)


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    def __init__(self, c_in, c_out, k=1, s=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.03)

    def forward(self, x):
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c, shortcut):
        super().__init__()
        self.cv1 = Conv(c, c, 3)
        self.cv2 = Conv(c, c, 3)
        self.shortcut = shortcut

    def forward(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Two halves; bottlenecks run in a chain on the second; everything is kept."""

    def __init__(self, c_in, c_out, n, shortcut):
        super().__init__()
        c = c_out // 2
        self.cv1 = Conv(c_in, 2 * c)
        self.cv2 = Conv((2 + n) * c, c_out)
        self.m = nn.ModuleList(Bottleneck(c, shortcut) for _ in range(n))

    def forward(self, x):
        parts = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            parts.append(m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class SPPF(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1 = Conv(c, c // 2)
        self.cv2 = Conv(c // 2 * 4, c)

    def forward(self, x):
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class DFL(nn.Module):
    """Expectation over the bins of each box side, as a 1x1 convolution with weights 0..15."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(REG_MAX, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data = torch.arange(REG_MAX, dtype=torch.float32).view(1, -1, 1, 1)

    def forward(self, logits):  # (B, 64, N) -> (B, 4, N)
        b, _, n = logits.shape
        bins = logits.view(b, 4, REG_MAX, n).transpose(1, 2).softmax(1)
        return self.conv(bins).view(b, 4, n)


class Detect(nn.Module):
    def __init__(self, channels, nc):
        super().__init__()
        self.nc = nc
        box = max(16, channels[0] // 4, 4 * REG_MAX)
        cls = max(channels[0], min(nc, 100))

        def branch(c, hidden, out):
            return nn.Sequential(Conv(c, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, out, 1))

        self.cv2 = nn.ModuleList(branch(c, box, 4 * REG_MAX) for c in channels)
        self.cv3 = nn.ModuleList(branch(c, cls, nc) for c in channels)
        self.dfl = DFL()

    def forward(self, feats):
        """Logits, the three levels one after the other: boxes (B, 64, N), scores (B, nc, N)."""
        boxes = torch.cat([m(f).flatten(2) for m, f in zip(self.cv2, feats)], 2)
        scores = torch.cat([m(f).flatten(2) for m, f in zip(self.cv3, feats)], 2)
        return boxes, scores


class Up(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2, mode="nearest")


class Concat(nn.Module):
    def forward(self, a, b):
        return torch.cat((a, b), 1)


class YOLOv8(nn.Module):
    """`widths`: channels at strides 2..32. `depths`: bottlenecks of layers 2, 4, 6, 8, 12, 15, 18, 21."""

    def __init__(self, widths=(16, 32, 64, 128, 256), depths=(1, 2, 2, 1, 1, 1, 1, 1), nc=80):
        super().__init__()
        a, b, c, d, e = widths
        n = depths
        self.model = nn.ModuleList([
            Conv(3, a, 3, 2),                   # 0
            Conv(a, b, 3, 2),                   # 1
            C2f(b, b, n[0], True),              # 2
            Conv(b, c, 3, 2),                   # 3
            C2f(c, c, n[1], True),              # 4
            Conv(c, d, 3, 2),                   # 5
            C2f(d, d, n[2], True),              # 6
            Conv(d, e, 3, 2),                   # 7
            C2f(e, e, n[3], True),              # 8
            SPPF(e),                            # 9
            Up(), Concat(),                     # 10, 11: with 6
            C2f(e + d, d, n[4], False),         # 12
            Up(), Concat(),                     # 13, 14: with 4
            C2f(d + c, c, n[5], False),         # 15
            Conv(c, c, 3, 2), Concat(),         # 16, 17: with 12
            C2f(c + d, d, n[6], False),         # 18
            Conv(d, d, 3, 2), Concat(),         # 19, 20: with 9
            C2f(d + e, e, n[7], False),         # 21
            Detect((c, d, e), nc),              # 22
        ])

    def features(self, x):
        """The head's three inputs, at strides 8, 16 and 32."""
        m = self.model
        kept = {}
        for i in range(10):
            kept[i] = x = m[i](x)
        p4 = m[12](m[11](m[10](x), kept[6]))
        out8 = m[15](m[14](m[13](p4), kept[4]))
        out16 = m[18](m[17](m[16](out8), p4))
        out32 = m[21](m[20](m[19](out16), x))
        return out8, out16, out32

    def forward(self, x):
        feats = self.features(x)
        boxes, scores = self.model[22](feats)
        return boxes, scores, feats

    def decode(self, boxes, feats):
        """Box logits to (cx, cy, w, h) in input pixels, (B, 4, N)."""
        centres, stride = anchors([f.shape[2:] for f in feats], boxes.device)
        left_top, right_bottom = self.model[22].dfl(boxes).chunk(2, 1)
        low, high = centres - left_top, centres + right_bottom
        return torch.cat(((low + high) / 2, high - low), 1) * stride

    def predict(self, x):
        """What the network says, decoded: (B, 4 + nc, N)."""
        boxes, scores, feats = self(x)
        return torch.cat((self.decode(boxes, feats), scores.sigmoid()), 1)


def anchors(sizes, device=None):
    """Cell centres (2, N) in units of their stride, and the strides (1, N), levels in order."""
    centres, strides = [], []
    for (h, w), s in zip(sizes, STRIDES):
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        centres.append(torch.stack((x, y)).flatten(1) + 0.5)
        strides.append(torch.full((1, h * w), float(s), device=device))
    return torch.cat(centres, 1), torch.cat(strides, 1)
