#!/usr/bin/env python3
"""Train the small model that ships with the tests, from nothing, on generated pictures.

    python train.py                      the model in testdata/model/
    python train.py --epochs 3 --count 500 --out /tmp/quick.safetensors

The loss is the one YOLOv8 is known for, written here from the papers:
task-aligned assignment (TOOD, arXiv:2108.07755), complete IoU
(arXiv:1911.08287), distribution focal loss (arXiv:2006.04388).
"""

import argparse
import copy
import json
import math
import os
import time
from multiprocessing import Pool
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that waits must not starve one that works

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save

from evaluate import MODEL, ROOT, held_out, letterbox, load, measure
from pictures import NAMES, picture
from tensorfile import sorted_metadata
from yolov8 import REG_MAX, STRIDES, YOLOv8, anchors

WIDTHS = (8, 16, 32, 64, 128)
DEPTHS = (1, 2, 2, 1, 1, 1, 1, 1)
IMGSZ = 320


# --- Loss ------------------------------------------------------------------------


def iou_of(a, b):
    """IoU of boxes x1 y1 x2 y2, any shapes that broadcast; also what CIoU needs."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    return both / (size_a.prod(-1) + size_b.prod(-1) - both + 1e-7), size_a, size_b


def ciou(a, b):
    """IoU less a penalty for the distance of the centres and for another aspect ratio."""
    iou, size_a, size_b = iou_of(a, b)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = apart.square().sum(-1) / (around.square().sum(-1) + 1e-7)
    angle = torch.atan(size_a[..., 0] / (size_a[..., 1] + 1e-7)) - torch.atan(size_b[..., 0] / (size_b[..., 1] + 1e-7))
    v = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + 1e-7)
    return iou - distance - alpha * v


@torch.no_grad()
def assign(scores, boxes, centres, labels, truth, real, top=10, alpha=0.5, beta=6.0):
    """Which anchors answer for which true box, and how sure of it they should be.

    scores (B, N, nc), boxes (B, N, 4), centres (N, 2), labels (B, M), truth (B, M, 4),
    real (B, M): M is padded. Returns the box index per anchor (B, N), whether it has
    one (B, N), and the scores wanted (B, N, nc).
    """
    b, n, nc = scores.shape
    to_edges = torch.cat((centres - truth[:, :, None, :2], truth[:, :, None, 2:] - centres), -1)
    possible = (to_edges.amin(-1) > 1e-6) & real[:, :, None]  # (B, M, N): centre inside the box
    iou = iou_of(truth[:, :, None], boxes[:, None])[0] * possible
    sure = scores.transpose(1, 2).gather(1, labels[:, :, None].expand(-1, -1, n))
    metric = sure**alpha * iou**beta * possible

    best = torch.zeros_like(possible)
    best.scatter_(2, metric.topk(min(top, n), 2).indices, True)
    mine = best & possible
    # An anchor that several boxes want goes to the one it overlaps most.
    owner = torch.where(mine, iou, -1.0).argmax(1)  # (B, N)
    mine &= F.one_hot(owner, mine.shape[1]).transpose(1, 2).bool()

    metric = metric * mine
    wanted = metric / (metric.amax(2, True) + 1e-12) * (iou * mine).amax(2, True)
    wanted = wanted.amax(1)  # (B, N); each anchor has one owner at most
    return owner, mine.any(1), F.one_hot(labels.gather(1, owner), nc) * wanted[..., None]


def loss_of(model, x, labels, truth, real, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        box_logits, score_logits, feats = model(x)
    box_logits, score_logits = box_logits.float(), score_logits.float()
    centres, stride = anchors([f.shape[2:] for f in feats])
    boxes = model.decode(box_logits, feats).transpose(1, 2)
    boxes = torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)
    score_logits = score_logits.transpose(1, 2)
    owner, has, wanted = assign(score_logits.sigmoid(), boxes, (centres * stride).T, labels, truth, real)

    total = wanted.sum().clamp(min=1)
    cls = F.binary_cross_entropy_with_logits(score_logits, wanted, reduction="sum") / total
    if not has.any():
        return cls
    weight = wanted.sum(-1)[has]
    aim = truth.gather(1, owner[..., None].expand(-1, -1, 4))[has]
    iou = ((1 - ciou(boxes[has], aim)) * weight).sum() / total

    # Each side's distance, in strides, lies between two bins; both share it.
    where = has.nonzero()[:, 1]
    centre, s = centres.T[where], stride[0, where, None]
    sides = torch.cat((centre - aim[:, :2] / s, aim[:, 2:] / s - centre), 1).clamp(0, REG_MAX - 1.01)
    low = sides.long()
    logits = box_logits.transpose(1, 2)[has].view(-1, 4, REG_MAX).log_softmax(-1)
    part = sides - low
    dfl = -(logits.gather(2, low[..., None])[..., 0] * (1 - part) + logits.gather(2, low[..., None] + 1)[..., 0] * part)
    dfl = (dfl.mean(1) * weight).sum() / total
    return 7.5 * iou + 0.5 * cls + 1.5 * dfl


# --- Pictures ----------------------------------------------------------------------


def prepared(seed):
    """A picture as the network will see it: pixels (3, S, S) u8 and boxes (n, 5)."""
    pixels, boxes = picture(seed)
    x, scale, (left, top) = letterbox(pixels, IMGSZ, square=True)
    boxes = np.array(boxes, np.float32).reshape(-1, 5)
    boxes[:, 1:] = boxes[:, 1:] * scale + (left, top, left, top)
    return (x * 255).round().byte().numpy(), boxes


def start_worker():
    torch.set_num_threads(1)


def pictures(count, cache):
    """All training pictures, drawn once and kept."""
    file = cache / f"{count}.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with Pool(initializer=start_worker) as pool:
            drawn = pool.map(prepared, range(count), chunksize=16)
        np.savez(file, pixels=np.stack([p for p, _ in drawn]), boxes=np.concatenate([b for _, b in drawn]),
                 counts=[len(b) for _, b in drawn])
    data = np.load(file)
    return data["pixels"], np.split(data["boxes"], np.cumsum(data["counts"])[:-1])


def augmented(rng, pixels, boxes, i):
    """One training sample: perhaps a window on four pictures, mirrored, in other colours."""
    s = IMGSZ
    x, b = pixels[i], boxes[i]
    if rng.random() < 0.5:
        others = [i, *rng.integers(0, len(pixels), 3)]
        cx, cy = rng.integers(s // 4, 3 * s // 4, 2)  # where the four meet
        x, parts = np.empty_like(x), []
        for j, (top, left) in zip(others, ((0, 0), (0, 1), (1, 0), (1, 1))):
            x1, x2 = (cx, s) if left else (0, cx)
            y1, y2 = (cy, s) if top else (0, cy)
            dx, dy = rng.integers(0, s - (x2 - x1) + 1), rng.integers(0, s - (y2 - y1) + 1)
            x[:, y1:y2, x1:x2] = pixels[j][:, dy:dy + y2 - y1, dx:dx + x2 - x1]
            moved = boxes[j] + (0, x1 - dx, y1 - dy, x1 - dx, y1 - dy)
            cut = moved.copy()
            cut[:, 1::2], cut[:, 2::2] = cut[:, 1::2].clip(x1, x2), cut[:, 2::2].clip(y1, y2)
            area = [(q[:, 3] - q[:, 1]) * (q[:, 4] - q[:, 2]) for q in (cut, moved)]
            parts.append(cut[area[0] > 0.4 * area[1]])
        b = np.concatenate(parts)
    x, b = x.astype(np.float32) / 255, b.copy()
    if rng.random() < 0.5:
        x, b[:, [1, 3]] = x[:, :, ::-1], s - b[:, [3, 1]]
    if rng.random() < 0.3:
        x = x[rng.permutation(3)]
    x = x * rng.uniform(0.7, 1.25, (3, 1, 1)) + rng.uniform(-0.1, 0.1)
    return x.clip(0, 1).astype(np.float32), b


def batch_of(samples):
    x = torch.from_numpy(np.stack([x for x, _ in samples]))
    most = max(1, max(len(b) for _, b in samples))
    table = torch.full((len(samples), most, 5), -1.0)
    for row, (_, b) in zip(table, samples):
        row[:len(b)] = torch.from_numpy(b)
    real = table[..., 0] >= 0
    return x, table[..., 0].clamp(min=0).long(), table[..., 1:].clone(), real


# --- Training ------------------------------------------------------------------------


def export(model, path):
    """f16, in the state dict's order, with what a reader needs to know as metadata."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert all(v.isfinite().all() for v in state.values())
    metadata = {
        "format": "haul.model/1", "task": "detect", "names": json.dumps(NAMES), "act": "silu", "bn_eps": "0.001",
        "reg_max": str(REG_MAX), "strides": json.dumps(STRIDES, separators=(",", ":")), "imgsz": str(IMGSZ),
        "license": "MIT OR Apache-2.0",
        "description": "A narrow YOLOv8-detect that finds eight cut-paper things, trained from scratch on generated pictures.",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sorted_metadata(save(state, metadata)))


def new_model():
    model = YOLOv8(WIDTHS, DEPTHS, len(NAMES))
    for box, cls, stride in zip(model.model[22].cv2, model.model[22].cv3, STRIDES):
        box[2].bias.data.fill_(1.0)
        cls[2].bias.data.fill_(math.log(3 / len(NAMES) / (IMGSZ / stride) ** 2))  # about three things per picture
    return model


def main():
    parser = argparse.ArgumentParser(description="train the small model on generated pictures")
    parser.add_argument("--count", type=int, default=8000, help="training pictures")
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="convolutions in bf16: a third faster on a processor that has it")
    parser.add_argument("--start", type=Path, help="go on from this model file instead of random weights")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, after the epoch it holds")
    parser.add_argument("--cache", type=Path, default=ROOT / ".scratch" / "train", help="where drawn pictures and the checkpoint lie")
    parser.add_argument("--out", type=Path, default=MODEL)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    pixels, boxes = pictures(args.count, args.cache)
    validation = held_out(100)
    model = (load(args.start)[0] if args.start else new_model()).to(memory_format=torch.channels_last)
    model.model[22].dfl.requires_grad_(False)
    average = copy.deepcopy(model).eval()
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]  # BN and biases
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}], lr=args.lr)
    steps = args.epochs * (args.count // args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / 200, 0.01 + 0.99 * (1 + math.cos(math.pi * i / steps)) / 2))

    checkpoint = args.cache / "checkpoint.pt"
    first, began = 0, time.time()
    if args.resume:
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["epoch"] + 1
        average.load_state_dict(saved["average"])
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.last_epoch = first * (args.count // args.batch)  # counts steps, in its words
    step = first * (args.count // args.batch)
    for epoch in range(first, args.epochs):
        rng = np.random.default_rng((args.seed, epoch))
        model.train()
        losses = []
        for chosen in rng.permutation(args.count)[:args.count // args.batch * args.batch].reshape(-1, args.batch):
            x, labels, truth, real = batch_of([augmented(rng, pixels, boxes, i) for i in chosen])
            size = int(rng.choice((256, 320, 320, 384)))  # sizes vary, so that other --imgsz work too
            if size != IMGSZ:
                x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
                truth *= size / IMGSZ
            loss = loss_of(model, x.contiguous(memory_format=torch.channels_last), labels, truth, real, args.bf16)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimiser.step()
            schedule.step()
            step += 1
            keep = min(0.998, (1 + step) / (10 + step))
            with torch.no_grad():
                for ours, new in zip(average.state_dict().values(), model.state_dict().values()):
                    ours.lerp_(new, 1 - keep) if ours.is_floating_point() else ours.copy_(new)
            losses.append(loss.item())
            if step % 50 == 0:
                print(f"  {step}/{steps} loss {np.mean(losses[-50:]):.3f} {time.time() - began:.0f} s", flush=True)
        map50, map5095 = measure(average, IMGSZ, validation)
        print(f"epoch {epoch + 1} loss {np.mean(losses):.3f} mAP50 {map50:.3f} mAP50-95 {map5095:.3f} {time.time() - began:.0f} s", flush=True)
        torch.save({"average": average.state_dict(), "model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}, checkpoint)
        export(average, args.out)


if __name__ == "__main__":
    main()
