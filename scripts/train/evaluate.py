#!/usr/bin/env python3
"""Measure a model file on generated pictures that training has never seen.

    python evaluate.py                                    our own PyTorch model on 500 pictures
    python evaluate.py --write DIR                        the same pictures and their annotations as files
    python evaluate.py --written DIR --detections OUT     score what `haul run` wrote about them
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open

from pictures import NAMES, picture
from yolov8 import YOLOv8

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "testdata" / "model" / "shapes.safetensors"
HELD_OUT = 10_000_000  # first seed; training uses seeds from 0


def letterbox(pixels, imgsz, square=False):
    """Fit into imgsz, centred on gray, sides padded to a multiple of 32 (or to the square).

    Returns the input (3, H, W) in [0, 1], the scale and the offset (x, y).
    """
    h, w = pixels.shape[:2]
    scale = min(imgsz / h, imgsz / w)
    new_h, new_w = round(h * scale), round(w * scale)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (new_h, new_w), mode="bilinear", align_corners=False).round()[0] / 255
    pad_h, pad_w = (imgsz - new_h, imgsz - new_w) if square else (-new_h % 32, -new_w % 32)
    left, top = pad_w // 2, pad_h // 2
    return F.pad(x, (left, pad_w - left, top, pad_h - top), value=114 / 255), scale, (left, top)


def nms(boxes, scores, conf, iou, max_det=300):
    """Boxes (N, 4) x1 y1 x2 y2, scores (N, nc): the best class of each anchor, suppressed within its class."""
    best, label = scores.max(1), scores.argmax(1)
    order = np.argsort(-best, kind="stable")
    order = order[best[order] > conf]
    kept = []
    while len(order) and len(kept) < max_det:
        i, order = order[0], order[1:]
        kept.append(i)
        low, high = np.maximum(boxes[order, :2], boxes[i, :2]), np.minimum(boxes[order, 2:], boxes[i, 2:])
        both = np.clip(high - low, 0, None).prod(1)
        area = (boxes[order, 2:] - boxes[order, :2]).prod(1) + (boxes[i, 2:] - boxes[i, :2]).prod() - both
        order = order[(both <= iou * area) | (label[order] != label[i])]
    return [(int(label[i]), float(best[i]), boxes[i]) for i in kept]


@torch.no_grad()
def detect(model, pixels, imgsz, conf=0.001, iou=0.7):
    """[(class, score, box)], boxes in pixels of the picture."""
    h, w = pixels.shape[:2]
    x, scale, offset = letterbox(pixels, imgsz)
    out = model.predict(x[None])[0].T.numpy()
    centre, size = out[:, :2], out[:, 2:4]
    boxes = np.hstack((centre - size / 2, centre + size / 2))
    found = nms(boxes, out[:, 4:], conf, iou)
    limit = (w, h, w, h)
    return [(c, s, np.clip((b - np.tile(offset, 2)) / scale, 0, limit)) for c, s, b in found]


def load(path):
    """A model file of ours: the network, in f32 whatever the file holds, and its metadata."""
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        state = {name: f.get_tensor(name).float() for name in f.keys()}
    widths = [state[f"model.{i}.conv.weight"].shape[0] for i in (0, 1, 3, 5, 7)]
    depths = [len({k.split(".")[3] for k in state if k.startswith(f"model.{i}.m.")}) for i in (2, 4, 6, 8, 12, 15, 18, 21)]
    model = YOLOv8(widths, depths, len(json.loads(meta["names"])))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(k.endswith("num_batches_tracked") for k in missing), missing
    return model.eval(), meta


def annotations(pictures):
    """COCO annotations for [(name, pixels, boxes)]."""
    images, found = [], []
    for i, (name, pixels, boxes) in enumerate(pictures):
        images.append({"id": i, "file_name": name, "width": pixels.shape[1], "height": pixels.shape[0]})
        for label, x1, y1, x2, y2 in boxes:
            found.append({"id": len(found) + 1, "image_id": i, "category_id": label, "iscrowd": 0,
                          "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    return {"images": images, "annotations": found, "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)]}


def score(truth, results, details=False):
    """mAP50 and mAP50-95. `results`: [(image id, class, score, box)]."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes([{"image_id": i, "category_id": c, "score": s, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
                              for i, c, s, b in results])
        e = COCOeval(coco, found, "bbox")
        e.evaluate()
        e.accumulate()
        e.summarize()
    if details:
        precision = e.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class
        for i, name in enumerate(NAMES):
            print(f"  {name:8} {precision[0, :, i].mean():.3f} {precision[:, :, i].mean():.3f}")
    return float(e.stats[1]), float(e.stats[0])


def held_out(count):
    return [(f"{i:05}.png", *picture(HELD_OUT + i)) for i in range(count)]


def measure(model, imgsz, pictures, details=False):
    results = [(i, c, s, b.tolist()) for i, (_, pixels, _) in enumerate(pictures) for c, s, b in detect(model, pixels, imgsz)]
    return score(annotations(pictures), results, details) if results else (0.0, 0.0)


def read_lines(folder):
    for part in sorted(Path(folder).glob("part-*.jsonl")):
        yield from map(json.loads, part.read_text().splitlines())


def main():
    parser = argparse.ArgumentParser(description="mAP on held-out generated pictures")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--imgsz", type=int, help="default: the model's own")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the pictures and instances.json, and stop")
    parser.add_argument("--written", type=Path, metavar="DIR", help="what --write wrote, for --detections")
    parser.add_argument("--detections", type=Path, metavar="OUT", help="an output folder of `haul run`")
    args = parser.parse_args()

    if args.write:
        (args.write / "images").mkdir(parents=True)
        pictures = held_out(args.count)
        for name, pixels, _ in pictures:
            Image.fromarray(pixels).save(args.write / "images" / name)
        (args.write / "instances.json").write_text(json.dumps(annotations(pictures)))
        return
    if args.detections:
        if not args.written:
            parser.error("--detections needs --written DIR")
        truth = json.loads((args.written / "instances.json").read_text())
        ids = {image["file_name"]: image["id"] for image in truth["images"]}
        lines = list(read_lines(args.detections))
        results = [(ids[line["image"]], d["class"], d["score"], d["box"]) for line in lines for d in line.get("detections", ())]  # none: an error line
        count, (map50, map5095) = len(lines), score(truth, results, True)
    else:
        model, meta = load(args.model)
        count, (map50, map5095) = args.count, measure(model, args.imgsz or int(meta["imgsz"]), held_out(args.count), True)
    print(f"mAP50 {map50:.4f}  mAP50-95 {map5095:.4f}  on {count} pictures")


if __name__ == "__main__":
    main()
