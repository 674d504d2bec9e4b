#!/usr/bin/env python3
"""Compare two outputs of haul, box by box.

    python scripts/gpu/compare.py OUT_A OUT_B      the parity of detections, and errors between them

`OUT` is the folder of a job, or one file of lines. Pictures are matched by file name, so that a job of a list and
a job of a folder can be compared.
"""

import json
import sys
from pathlib import Path

import numpy as np

# Parity with another f32 implementation: what is a partner, and how many may have none.
PARITY_SCORE, PARITY_IOU, PARITY_FROM = 0.03, 0.95, 0.30
# f16 and bf16 beside f32: pixels of the network's input, scores, share of detections with a partner.
BOX_MEAN, BOX_P99, SCORE_MEAN, PARTNER_IOU, PARTNERS = 0.15, 1.0, 0.008, 0.90, 0.98


class Found:
    """A picture's boxes in its own pixels, best first."""

    def __init__(self, width, height, classes, scores, boxes):
        self.width, self.height = width, height
        self.classes, self.scores = np.asarray(classes, np.int64), np.asarray(scores, np.float64)
        self.boxes = np.asarray(boxes, np.float64).reshape(-1, 4)

    def above(self, score):
        keep = self.scores >= score
        return Found(self.width, self.height, self.classes[keep], self.scores[keep], self.boxes[keep])

    def __len__(self):
        return len(self.scores)


def lines(out):
    """The lines of an output, by file name."""
    out = Path(out)
    files = [out] if out.is_file() else sorted(out.glob("part-*.jsonl"))
    every = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    named = {Path(line["image"]).name: line for line in every}
    if len(named) != len(every):
        raise ValueError(f"two pictures of {out} have one file name")
    return named


def found(line):
    """A line's boxes. A golden's line has the same fields."""
    boxes = line["detections"]
    return Found(line["width"], line["height"], [b["class"] for b in boxes], [b["score"] for b in boxes],
                 [b["box"] for b in boxes])


def pairs(a, b):
    """The boxes of pictures that both have. Anything else that differs is an error: nothing is left out silently."""
    if set(a) != set(b):
        raise ValueError(f"the pictures differ: {sorted(set(a) ^ set(b))[:3]} ...")
    broken = [name for name in a if "detections" not in a[name] or "detections" not in b[name]]
    if broken:
        raise ValueError(f"{len(broken)} pictures could not be read, {broken[0]} first")
    return [(found(a[name]), found(b[name])) for name in sorted(a)]


def iou(a, b):
    """Of all with all: (len(a), len(b))."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=2)
    area = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    return both / np.maximum(area[0][:, None] + area[1][None] - both, 1e-12)


def lonely(these, those):
    """How many of `these` above 0.30 have no partner of their own among `those`, and how many there are."""
    these = these.above(PARITY_FROM)
    match = (iou(these.boxes, those.boxes) >= PARITY_IOU) & (these.classes[:, None] == those.classes)
    match &= np.abs(these.scores[:, None] - those.scores) <= PARITY_SCORE
    taken, alone = np.zeros(len(those), bool), 0
    for row in match:
        free = np.flatnonzero(row & ~taken)
        if len(free):
            taken[free[0]] = True
        else:
            alone += 1
    return alone, len(these)


def parity(every):
    """Both ways: (without a partner, of so many)."""
    missing, extra = [lonely(a, b) for a, b in every], [lonely(b, a) for a, b in every]
    return [tuple(map(sum, zip(*counts))) for counts in (missing, extra)]


def partners(every):
    """The share of all detections, both ways, that have one of their class at IoU 0.90."""
    matched = count = 0
    for a, b in every:
        match = (iou(a.boxes, b.boxes) >= PARTNER_IOU) & (a.classes[:, None] == b.classes)
        matched += match.any(axis=1).sum() + match.any(axis=0).sum()
        count += len(a) + len(b)
    return matched / max(count, 1), count


def errors(every, imgsz):
    """How far boxes (in pixels of the network's input) and scores of candidates are apart.

    For outputs without suppression (`--iou 1`), where a cell's box stands for itself: the first output from 0.25, the
    second from far less. Outputs have no cell numbers, so the nearest box of the class is taken; `lost` have none
    at IoU 0.50.
    """
    boxes, scores, lost = [], [], 0
    for a, b in every:
        scale = min(imgsz / a.width, imgsz / a.height)
        for cls in np.unique(a.classes):
            here, there = a.classes == cls, b.classes == cls
            if not there.any():
                lost += here.sum()
                continue
            # Neighbouring cells may give nearly the same box: the score decides between them.
            apart = np.abs(a.boxes[here][:, None] - b.boxes[there][None])
            cost = apart.max(axis=2) * scale + 10 * np.abs(a.scores[here][:, None] - b.scores[there])
            nearest = cost.argmin(axis=1)
            good = iou(a.boxes[here], b.boxes[there])[np.arange(len(nearest)), nearest] >= 0.5
            lost += (~good).sum()
            boxes.append(apart[np.arange(len(nearest)), nearest][good].ravel() * scale)
            scores.append(np.abs(a.scores[here] - b.scores[there][nearest])[good])
    boxes, scores = (np.concatenate(values) if values else np.zeros(0) for values in (boxes, scores))
    nothing = not len(scores)
    return {"candidates": len(scores) + int(lost), "lost": int(lost),
            "box_mean": np.nan if nothing else boxes.mean(), "box_p99": np.nan if nothing else np.quantile(boxes, 0.99),
            "box_max": np.nan if nothing else boxes.max(), "score_mean": np.nan if nothing else scores.mean(),
            "score_max": np.nan if nothing else scores.max()}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    every = pairs(lines(sys.argv[1]), lines(sys.argv[2]))
    (missing, theirs), (extra, ours) = parity(every)
    print(f"{len(every)} pictures: {missing} of {theirs} in A have no partner in B, {extra} of {ours} in B none in A")
    share, count = partners(every)
    print(f"{share:.2%} of {count} detections have one of their class at IoU {PARTNER_IOU}")
    print({key: round(float(value), 6) for key, value in errors(every, 640).items()})


if __name__ == "__main__":
    main()
