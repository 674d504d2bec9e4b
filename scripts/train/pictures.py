"""Seeded pictures of a cut-paper world, and where the things in them are.

    python pictures.py FOLDER [--count 12] [--seed 1]     write some to look at

`picture(seed)` gives the pixels and one (class, x1, y1, x2, y2) per thing: the
box around what is visible of it. The same seed gives the same picture.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

PAPERS = [  # what things are cut from
    (214, 60, 54), (236, 106, 58), (244, 162, 60), (246, 206, 84), (150, 186, 70), (66, 150, 92),
    (40, 140, 140), (60, 130, 196), (54, 84, 160), (116, 84, 170), (186, 90, 160), (236, 130, 150),
    (250, 240, 220), (130, 84, 58), (70, 70, 84), (168, 206, 220),
]
SKIES = [  # top, horizon, hills from far to near
    ((120, 184, 224), (232, 240, 232), (130, 176, 140), (84, 140, 84)),
    ((58, 70, 130), (250, 170, 120), (150, 100, 120), (80, 66, 96)),
    ((24, 30, 66), (74, 84, 130), (50, 66, 96), (30, 44, 60)),
    ((246, 214, 170), (252, 240, 216), (206, 176, 120), (160, 130, 80)),
    ((170, 214, 206), (240, 232, 214), (120, 170, 160), (70, 120, 116)),
    ((204, 210, 216), (236, 236, 236), (220, 226, 232), (240, 244, 248)),
]


# --- The things, as layers of (colour, polygon) in about [-1, 1], y down ------


def paper(rng):
    """One of the papers, slightly off."""
    return tuple(np.clip(np.array(PAPERS[rng.integers(len(PAPERS))]) + rng.normal(0, 12, 3), 0, 255))


def shade(colour, by):
    return tuple(np.clip(np.array(colour) * by, 0, 255))


def ellipse(x, y, rx, ry, start=0.0, end=360.0):
    t = np.radians(np.linspace(start, end, 40))
    return np.stack((x + rx * np.cos(t), y + ry * np.sin(t)), 1)


def box(x1, y1, x2, y2):
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def balloon(rng):
    a, b, basket = paper(rng), paper(rng), shade((150, 100, 60), rng.uniform(0.7, 1.2))

    def envelope(width):
        t = np.linspace(0, np.pi, 30)  # from the top down to the neck
        x = width * (np.sin(t) * (1 - 0.28 * (t / np.pi) ** 2) + 0.22 * (t / np.pi) ** 3)
        y = -0.3 - 0.68 * np.cos(t)
        return np.concatenate((np.stack((x, y), 1), np.stack((-x, y), 1)[::-1]))

    ropes = [[(-0.15, 0.36), (-0.11, 0.36), (-0.11, 0.7), (-0.15, 0.7)], [(0.15, 0.36), (0.11, 0.36), (0.11, 0.7), (0.15, 0.7)]]
    gores = [(c, envelope(w)) for c, w in ((a, 0.74), (b, 0.52), (a, 0.3), (b, 0.12))]
    return [(shade(basket, 0.7), r) for r in ropes] + gores + [(basket, box(-0.19, 0.66, 0.19, 0.98))]


def boat(rng):
    hull, one, two = paper(rng), paper(rng), paper(rng)
    return [((96, 70, 50), box(-0.04, -1, 0.04, 0.5)),
            (one, [(0.08, -0.92), (0.8, 0.36), (0.08, 0.36)]),
            (two, [(-0.08, -0.7), (-0.08, 0.36), (-0.66, 0.36)]),
            (hull, [(-0.95, 0.46), (0.95, 0.46), (0.6, 0.92), (-0.62, 0.92)]),
            (shade(hull, 0.75), [(-0.95, 0.46), (0.95, 0.46), (0.88, 0.57), (-0.87, 0.57)])]


def fish(rng):
    body, fin = paper(rng), paper(rng)
    t = np.linspace(0, np.pi, 30)
    upper = np.stack((0.25 - 0.73 * np.cos(t), -0.5 * np.sin(t) ** 0.9), 1)
    whole = np.concatenate((upper, (upper * (1, -1))[::-1]))
    stripes = [(shade(body, 0.8), ellipse(x, 0, 0.06, 0.4 - abs(x) * 0.4)) for x in rng.permutation([-0.1, 0.15, 0.4])[:rng.integers(0, 4)]]
    return [(fin, [(-0.3, 0), (-0.95, -0.5), (-0.8, 0), (-0.95, 0.5)]),
            (fin, [(-0.1, -0.4), (0.2, -0.72), (0.5, -0.4)]),
            (body, whole), *stripes,
            (fin, [(0.1, 0.1), (-0.2, 0.34), (0.22, 0.3)]),
            ((250, 250, 245), ellipse(0.66, -0.12, 0.1, 0.1)), ((30, 30, 40), ellipse(0.68, -0.12, 0.05, 0.05))]


def flower(rng):
    petal, heart, n = paper(rng), paper(rng), rng.integers(5, 9)
    fat = rng.uniform(0.8, 1.1) * 1.5 / n
    out = []
    for i in range(n):
        t = 2 * np.pi * i / n
        turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
        out.append((shade(petal, 1.0 if i % 2 else 0.88), ellipse(0.58, 0, 0.4, fat) @ turn))
    return out + [(heart, ellipse(0, 0, 0.28, 0.28)), (shade(heart, 0.8), ellipse(0, 0, 0.13, 0.13))]


def house(rng):
    wall, roof, door = paper(rng), paper(rng), paper(rng)
    glass = (250, 226, 140) if rng.random() < 0.5 else (160, 200, 220)
    out = [(shade(roof, 0.7), box(0.36, -0.92, 0.58, -0.3))] if rng.random() < 0.6 else []
    out += [(wall, box(-0.74, -0.2, 0.74, 0.95)), (roof, [(-0.95, -0.15), (0, -0.98), (0.95, -0.15)])]
    x = rng.choice([-0.42, 0.0, 0.42])
    out.append((door, box(x - 0.16, 0.4, x + 0.16, 0.95)))
    for w in (-0.42, 0.0, 0.42):
        if w != x:
            out += [((245, 240, 230), box(w - 0.17, 0.02, w + 0.17, 0.38)), (glass, box(w - 0.13, 0.06, w + 0.13, 0.34))]
    return out


def kite(rng):
    a, b, tail = paper(rng), paper(rng), paper(rng)
    top, right, bottom, left, mid = (0, -0.98), (0.52, -0.4), (0, 0.42), (-0.52, -0.4), (0, -0.4)
    out = [(shade(tail, 0.8), [(-0.03, 0.4), (0.03, 0.4), (0.13, 0.7), (0.03, 0.98), (-0.03, 0.98), (0.07, 0.7)])]
    for x, y in ((0.07, 0.6), (0.07, 0.84)):
        out += [(tail, [(x, y), (x - 0.17, y - 0.1), (x - 0.17, y + 0.1)]), (tail, [(x, y), (x + 0.17, y - 0.1), (x + 0.17, y + 0.1)])]
    return out + [(a, [top, right, mid]), (b, [top, left, mid]), (b, [bottom, right, mid]), (a, [bottom, left, mid])]


def star(rng):
    colour, inner = paper(rng), rng.uniform(0.38, 0.5)
    t = np.pi * np.arange(11) / 5
    r = np.where(np.arange(11) % 2 == 0, 0.98, inner * 0.98)
    rim = np.stack((r * np.sin(t), -r * np.cos(t)), 1)
    out = [(colour, rim)]
    if rng.random() < 0.6:  # folded: every second facet in shadow
        out += [(shade(colour, 0.8), [(0, 0), rim[i], rim[i + 1]]) for i in range(0, 10, 2)]
    return out


def tree(rng):
    green = shade([(66, 140, 80), (40, 120, 110), (120, 160, 70), (200, 130, 60), (90, 110, 90)][rng.integers(5)], rng.uniform(0.8, 1.2))
    trunk = ((120, 84, 58), box(-0.12, 0.4, 0.12, 0.98))
    if rng.random() < 0.5:  # fir
        tiers = [(0.72, 0.66, -0.1), (0.58, 0.26, -0.5), (0.42, -0.18, -0.98)]
        return [trunk] + [(shade(green, 0.82 + 0.12 * i), [(-w, y), (w, y), (0, tip)]) for i, (w, y, tip) in enumerate(tiers)]
    puffs = [(-0.36, 0.1, 0.4), (0.36, 0.1, 0.4), (-0.24, -0.36, 0.4), (0.26, -0.36, 0.4), (0, -0.56, 0.4), (0, -0.1, 0.46)]
    return [trunk] + [(shade(green, 0.84 + 0.05 * i), ellipse(x, y, r, r)) for i, (x, y, r) in enumerate(puffs)]


THINGS = [balloon, boat, fish, flower, house, kite, star, tree]
NAMES = [f.__name__ for f in THINGS]
SKY, GROUND, SEA = [0, 5, 6], [3, 4, 7], [1, 2]


# --- What is there but not asked for -----------------------------------------


def cloud(rng):
    white = (250, 250, 250)
    return [(white, ellipse(x, -h / 2, 0.34, h)) for x, h in zip((-0.6, -0.25, 0.2, 0.6), rng.uniform(0.2, 0.5, 4))]


def sun(rng):
    return [(shade((250, 206, 90), rng.uniform(0.8, 1.1)), ellipse(0, 0, 0.9, 0.9))]


def ring(rng):
    r = rng.uniform(0.4, 0.8)
    return [(paper(rng), np.concatenate((ellipse(0, 0, 0.95, 0.95), ellipse(0, 0, r, r)[::-1])))]


def scrap(rng):
    """A torn piece of paper."""
    t = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    return [(paper(rng), np.stack((np.cos(t), np.sin(t)), 1) * rng.uniform(0.5, 1, (len(t), 1)))]


def bird(rng):
    return [((60, 60, 70), np.concatenate((ellipse(x, 0, 0.45, 0.35, 180, 360), ellipse(x, 0.04, 0.4, 0.24, 360, 180)))) for x in (-0.45, 0.45)]


# --- Painting ------------------------------------------------------------------


def cut_out(layers, size, angle, stretch, rng):
    """The layers as RGBA floats, `size` pixels across at most before turning. Drawn large, then reduced."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s], [s, c]]) @ np.diag(size / 2 * np.array(stretch))
    layers = [(colour, np.asarray(points) @ turn.T) for colour, points in layers]
    low = np.floor(np.min([p.min(0) for _, p in layers], 0)) - 1
    high = np.ceil(np.max([p.max(0) for _, p in layers], 0)) + 2
    w, h = (high - low).astype(int)
    fine = 4 if size < 120 else 2
    image = Image.new("RGBA", (w * fine, h * fine))
    draw = ImageDraw.Draw(image)
    for colour, points in layers:
        draw.polygon([tuple(p) for p in (points - low) * fine], fill=tuple(int(v) for v in colour) + (255,))
    out = np.asarray(image.reduce(fine), np.float32)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    light = 1 + rng.uniform(0, 0.18) * ((w - x) / w + (h - y) / h - 1)  # from the top left
    if rng.random() < 0.3:  # printed paper
        period, a = max(4, size * rng.uniform(0.06, 0.15)), rng.uniform(0, np.pi)
        wave = np.sin(2 * np.pi * (x * np.cos(a) + y * np.sin(a)) / period)
        if rng.random() < 0.5:
            wave *= np.sin(2 * np.pi * (y * np.cos(a) - x * np.sin(a)) / period)
        light *= 1 + 0.12 * np.sign(wave)
    light *= 1 + rng.normal(0, 0.02, (h, w))  # grain
    out[..., :3] = np.clip(out[..., :3] * light[..., None], 0, 255)
    out[..., 3] /= 255
    return out


def noise(rng, h, w, cells):
    """Smooth noise in about [-1, 1], `cells` bumps across."""
    small = rng.uniform(-1, 1, (max(2, cells * h // max(h, w)), max(2, cells * w // max(h, w)))).astype(np.float32)
    return np.asarray(Image.fromarray(small).resize((w, h), Image.BICUBIC))


class Canvas:
    def __init__(self, rng, width, height):
        self.rng, self.w, self.h = rng, width, height
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.owner = np.zeros((height, width), np.int16)  # which thing is on top, 0 for none
        self.things = []  # class and own pixels when whole
        self.y, self.x = np.mgrid[:height, :width].astype(np.float32)

    def hills(self, base, colour):
        """Everything below a wavy edge, with its shadow on what is behind."""
        rng, edge = self.rng, np.full(self.w, base * self.h)
        for _ in range(3):
            edge = edge + rng.uniform(0, 0.03) * self.h * np.sin(np.arange(self.w) / self.w * rng.uniform(2, 14) + rng.uniform(0, 7))
        depth = self.y - edge[None]
        self.pixels *= 1 - 0.3 * np.clip(1 + depth / (0.02 * self.h + 3), 0, 1)[..., None]
        grain = 1 + 0.04 * noise(rng, self.h, self.w, 40) - 0.1 * depth / self.h
        cover = np.clip(depth + 0.5, 0, 1)[..., None]
        self.pixels = self.pixels * (1 - cover) + cover * grain[..., None] * np.array(colour, np.float32)

    def landscape(self, sea):
        """A sky above hills or waves. Returns the horizon."""
        rng, (top, low, far, near) = self.rng, SKIES[self.rng.integers(len(SKIES))]
        horizon = rng.uniform(0.35, 0.65)
        t = np.clip(self.y / (horizon * self.h), 0, 1)[..., None]
        self.pixels[:] = (1 - t) * np.array(top) + t * np.array(low) + 4 * noise(rng, self.h, self.w, 30)[..., None]
        for shape in rng.permutation([sun, cloud, cloud, bird, bird, bird])[:rng.integers(1, 6)]:
            self.put(shape, (rng.uniform(0, self.w), rng.uniform(0, horizon) * self.h), rng.uniform(0.05, 0.2) * max(self.h, self.w), 0)
        if sea:
            far, near = (90, 150, 190), (30, 90, 140)
        steps = rng.integers(2, 6)
        for i in range(steps):
            t = i / (steps - 1)
            self.hills(horizon + (1 - horizon) * t * 0.8, tuple((1 - t) * np.array(far) + t * np.array(near) + rng.normal(0, 6, 3)))
        return horizon

    def tabletop(self):
        """Anything else: gradients, patterns, clutter."""
        rng = self.rng
        a, b = np.array(paper(rng)), np.array(paper(rng))
        t = (noise(rng, self.h, self.w, rng.integers(2, 12)) + 1) / 2
        if rng.random() < 0.5:
            angle, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.3) * max(self.h, self.w)
            wave = np.sin((self.x * np.cos(angle) + self.y * np.sin(angle)) * 2 * np.pi / period)
            if rng.random() < 0.5:
                wave = wave * np.sin((self.y * np.cos(angle) - self.x * np.sin(angle)) * 2 * np.pi / period)
            b, t = a * rng.uniform(0.75, 1.25), (wave > 0) * 1.0
        self.pixels[:] = a * (1 - t[..., None]) + b * t[..., None]
        self.pixels += rng.uniform(0, 25) * noise(rng, self.h, self.w, rng.integers(20, 80))[..., None]
        for _ in range(rng.integers(0, 12)):
            shape = (scrap, ring, cloud, bird)[rng.choice(4, p=(0.6, 0.2, 0.1, 0.1))]
            self.put(shape, rng.uniform(0, (self.w, self.h)), rng.uniform(0.03, 0.3) * max(self.h, self.w), rng.uniform(0, 7))

    def put(self, shape, at, size, angle):
        """Lay a thing down, unless too little of it or of another would show. Clutter has no class."""
        rng = self.rng
        layers = shape(rng)
        stretch = np.exp(rng.normal(0, 0.08, 2)) * (rng.choice((-1, 1)), 1)
        image = cut_out(layers, size, angle, stretch, rng)
        h, w = image.shape[:2]
        x, y = int(at[0] - w / 2), int(at[1] - h / 2)
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, self.w), min(y + h, self.h)
        if x1 >= x2 or y1 >= y2:
            return
        seen = image[y1 - y:y2 - y, x1 - x:x2 - x]
        mask = seen[..., 3] > 0.5
        if shape in THINGS:
            if mask.sum() < 0.6 * (image[..., 3] > 0.5).sum():
                return
            below = self.owner[y1:y2, x1:x2]
            hidden = np.bincount(below[mask], minlength=len(self.things) + 1)
            left = np.bincount(self.owner.ravel(), minlength=len(self.things) + 1) - hidden
            if any(left[i + 1] < 0.55 * area for i, (_, area) in enumerate(self.things)):
                return
            self.things.append((THINGS.index(shape), mask.sum()))
            below[mask] = len(self.things)
        self.shadow(image[..., 3], x, y, 0.02 * size + 1)
        ground = self.pixels[y1:y2, x1:x2]
        ground += (seen[..., :3] - ground) * seen[..., 3:]

    def shadow(self, alpha, x, y, far):
        """The thing's outline, blurred and moved down right, darkens the ground."""
        pad = int(3 * far) + 2
        soft = Image.fromarray(np.pad(alpha * 255, pad).astype(np.uint8)).filter(ImageFilter.BoxBlur(float(far)))
        soft = np.asarray(soft, np.float32) / 255
        x, y = x - pad + int(far + 1), y - pad + int(far + 1)
        x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + soft.shape[1], self.w), min(y + soft.shape[0], self.h)
        if x1 < x2 and y1 < y2:
            self.pixels[y1:y2, x1:x2] *= 1 - 0.35 * soft[y1 - y:y2 - y, x1 - x:x2 - x, None]

    def boxes(self):
        out = []
        for i, (label, _) in enumerate(self.things):
            ys, xs = np.nonzero(self.owner == i + 1)
            out.append((label, float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)))
        return out


def wear(rng, pixels):
    """What cameras and the web do to pictures."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.2))))
    if rng.random() < 0.15:
        draw = ImageDraw.Draw(image)
        for _ in range(rng.integers(1, 5)):
            points = np.cumsum(rng.normal(0, 0.06 * max(image.size), (8, 2)), 0) + rng.uniform(0, image.size)
            draw.line([tuple(p) for p in points], fill=tuple(int(v) for v in paper(rng)), width=int(rng.integers(1, 4)))
    pixels = np.asarray(image, np.float32)
    if rng.random() < 0.4:
        pixels = pixels + rng.normal(0, rng.uniform(2, 14), pixels.shape)
    if rng.random() < 0.4:
        pixels = (pixels - 128) * rng.uniform(0.6, 1.2) + 128 + rng.normal(0, 15)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.7:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(rng.integers(30, 96)))
        image = Image.open(data).convert("RGB")
    return np.asarray(image)


def picture(seed, size=None, worn=True, tidy=None):
    """Pixels (H, W, 3) u8 and the boxes. A tidy picture has things where they belong: fish in water, kites in the sky."""
    rng = np.random.default_rng(seed)
    if size is None:
        size = rng.integers(200, 641, 2)
    width, height = (int(v) for v in size)
    canvas = Canvas(rng, width, height)
    long, short = max(width, height), min(width, height)
    tidy = rng.random() < 0.4 if tidy is None else tidy
    sea = rng.random() < 0.5
    horizon = canvas.landscape(sea) if tidy or rng.random() < 0.5 else canvas.tabletop()
    wanted = []
    for _ in range(rng.integers(2, 11)):
        part = np.exp(rng.uniform(np.log(0.07), np.log(0.4)))
        label, x, y, angle = rng.integers(len(THINGS)), rng.uniform(0.03, 0.97), rng.uniform(0.03, 0.97), rng.normal(0, 0.35)
        if tidy:
            sky = rng.random() < 0.45
            label = rng.choice(SKY if sky else SEA if sea else GROUND)
            t = rng.random()  # from the horizon to the near edge
            y = rng.uniform(0.08, 0.9) * horizon if sky else horizon + 0.05 + (0.87 - horizon) * t
            part = part if sky else 0.08 + 0.2 * t * rng.uniform(0.6, 1.4)
            angle = rng.normal(0, 0.1) * (4 if label in (5, 6) else 1)
        elif label in (2, 3, 5, 6):
            angle *= 3  # fish, flowers, kites and stars turn freely
        wanted.append((y if tidy else rng.random(), label, x, y, part, angle))
    for _, label, x, y, part, angle in sorted(wanted, key=lambda w: w[0]):  # the nearer, the later
        canvas.put(THINGS[label], (x * width, y * height), min(part * long, 0.9 * short), angle)
    pixels = np.clip(canvas.pixels, 0, 255).astype(np.uint8)
    return (wear(rng, pixels) if worn else pixels), canvas.boxes()


def main():
    parser = argparse.ArgumentParser(description="write a few pictures to look at")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for i in range(args.count):
        pixels, boxes = picture(args.seed + i)
        Image.fromarray(pixels).save(args.folder / f"{args.seed + i}.png")
        print(args.seed + i, pixels.shape, [NAMES[b[0]] for b in boxes])


if __name__ == "__main__":
    main()
