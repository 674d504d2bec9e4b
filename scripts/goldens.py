#!/usr/bin/env python3
"""Write testdata/golden/: what the network and NMS must answer, from our own PyTorch model.

Weights and inputs are made by formula (formula.py), so a reader needs no weight file.

    python scripts/goldens.py            write the files
    python scripts/goldens.py --check    compare the model with the goldens under
                                         HAUL_PARITY_DATA/golden, and these files with what is written
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "train"))
from formula import u  # noqa: E402
from tensorfile import sorted_metadata  # noqa: E402
from yolov8 import YOLOv8  # noqa: E402

OUT = ROOT / "testdata" / "golden"
N_DEPTHS = [1, 2, 2, 1, 1, 1, 1, 1]
NETWORKS = {  # name: widths, depths, classes, input height, input width
    "yolov8n": ([16, 32, 64, 128, 256], N_DEPTHS, 80, 64, 96),
    "yolov8s": ([32, 64, 128, 256, 512], N_DEPTHS, 80, 64, 96),
    "narrow": ([8, 16, 32, 64, 128], N_DEPTHS, 5, 64, 96),
    "deeper": ([16, 24, 40, 72, 136], [2, 1, 3, 1, 2, 1, 1, 2], 3, 96, 64),
    "many-classes": ([16, 32, 64, 128, 256], N_DEPTHS, 120, 32, 64),
}


def formula_weights(model):
    state = model.state_dict()
    for name, tensor in state.items():
        count = tensor.numel()
        if name.endswith((".bn.weight", ".running_mean", ".running_var", "num_batches_tracked", "dfl.conv.weight")):
            continue  # as constructed: 1, 0, 1, -, 0..15
        if name.endswith(".bias"):
            values = 0.1 * u(name, count)
        else:
            fan = count // tensor.shape[0]
            values = u(name, count) * np.sqrt(3 / fan) * 1.6
        tensor.copy_(torch.from_numpy(values).view(tensor.shape))
    return model


@torch.no_grad()
def network_golden(widths, depths, nc, height, width):
    model = formula_weights(YOLOv8(widths, depths, nc)).eval()
    x = torch.from_numpy(0.5 * u("input", 3 * height * width) + 0.5).float().view(1, 3, height, width)
    boxes, scores, feats = model(x)
    out = {"out.0": torch.cat((model.decode(boxes, feats), scores.sigmoid()), 1),
           "out.1.boxes": boxes, "out.1.scores": scores}
    out |= {f"out.1.feats.{i}": f for i, f in enumerate(feats)}
    return {name: np.ascontiguousarray(t.numpy()) for name, t in out.items()}


# --- NMS -------------------------------------------------------------------


def iou(a, b):
    """f32 all the way, boxes as x1, y1, x2, y2; an empty union gives 0."""
    f = np.float32
    w = np.maximum(f(0), np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]))
    h = np.maximum(f(0), np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]))
    both = w * h
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else f(0)


def nms(boxes, scores, conf, threshold, max_det, agnostic):
    """Plain O(n^2). `boxes` (N, 4) x1 y1 x2 y2, `scores` (N, nc). Returns [(anchor, class), ...].

    An anchor counts with its best class only (the lowest index among equals).
    It is a candidate if that score > conf and all of its numbers are finite.
    Order: score descending, then class, then anchor.
    A box goes if its IoU with a kept one (of its class, unless agnostic) is > threshold.
    """
    candidates = []
    for anchor in range(len(boxes)):
        if not (np.isfinite(boxes[anchor]).all() and np.isfinite(scores[anchor]).all()):
            continue
        label = int(np.argmax(scores[anchor]))
        if scores[anchor, label] > np.float32(conf):
            candidates.append((-float(scores[anchor, label]), label, anchor))
    kept = []
    for _, label, anchor in sorted(candidates):
        if len(kept) == max_det:
            break
        rivals = [k for k, c in kept if agnostic or c == label]
        if all(iou(boxes[anchor], boxes[k]) <= np.float32(threshold) for k in rivals):
            kept.append((anchor, label))
    return kept


def nms_cases():
    """Seeded predictions. Every input number is an exact f32, so JSON carries it without loss."""
    rng = np.random.default_rng(8)

    def crowd(n, nc, objects, step=None):
        """Boxes jittered around a few objects. `step` rounds scores, which makes ties."""
        centre = rng.uniform(20, 300, (objects, 2))[rng.integers(0, objects, n)] + rng.normal(0, 4, (n, 2))
        size = np.exp(rng.normal(3.5, 0.3, (n, 2)))
        scores = rng.uniform(0, 1, (n, nc)) ** 3
        if step:
            scores = np.round(scores / step) * step
        return np.hstack((centre - size / 2, centre + size / 2)), scores

    cases = {}

    def case(name, boxes, scores, conf=0.25, iou=0.7, max_det=300, agnostic=False):
        cases[name] = (np.array(boxes, np.float32), np.array(scores, np.float32), conf, iou, max_det, agnostic)

    boxes, scores = crowd(120, 4, 6)
    case("crowd by class", boxes, scores)
    case("crowd agnostic", boxes, scores, agnostic=True)
    case("crowd low iou", boxes, scores, iou=0.3)
    case("crowd low conf, few allowed", boxes, scores, conf=0.001, max_det=7)
    boxes, scores = crowd(90, 3, 4, step=0.125)
    case("ties in score", boxes, scores, conf=0.2)
    case("ties in score agnostic", boxes, scores, conf=0.2, agnostic=True)
    case("ties at conf exactly", boxes, scores, conf=0.25)
    case("all boxes the same", [[10, 10, 50, 50]] * 6, [[0.5, 0.5]] * 3 + [[0.25, 0.5]] * 3, agnostic=True)
    case("all boxes the same, by class", [[10, 10, 50, 50]] * 6, [[0.5, 0.5]] * 3 + [[0.25, 0.5]] * 3)
    # The second is half of the first, so their IoU is exactly 0.5.
    case("iou equal to the threshold stays", [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 1]], [[0.9], [0.8], [0.7]], iou=0.5)
    case("iou just above goes", [[0, 0, 4, 4], [0, 0, 4, 2.0000002]], [[0.9], [0.8]], iou=0.5)
    case("touching edges", [[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8]], [[0.9], [0.8], [0.7]], iou=0.0)
    case("no area", [[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], [[0.9], [0.8], [0.7]], iou=0.1)
    nan, inf = np.nan, np.inf
    case("not finite", [[0, 0, 4, 4], [nan, 0, 4, 4], [0, 0, inf, 4], [0, 0, 4, 4], [9, 9, 12, 12]],
         [[0.5, 0.1], [0.9, 0.1], [0.9, 0.1], [nan, 0.99], [0.1, 0.4]])
    case("suppressed boxes do not suppress", [[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]], [[0.9], [0.8], [0.7]], iou=0.5)
    case("nothing above conf", [[0, 0, 4, 4]], [[0.1]])
    case("nothing at all", np.zeros((0, 4)), np.zeros((0, 2)))
    return cases


def number(x):
    """JSON has no NaN: such numbers are strings."""
    return float(x) if np.isfinite(x) else str(float(x))


def nms_json():
    out = []
    for name, (boxes, scores, conf, threshold, max_det, agnostic) in nms_cases().items():
        kept = nms(boxes, scores, conf, threshold, max_det, agnostic)
        out.append(json.dumps({
            "name": name, "conf": conf, "iou": threshold, "max_det": max_det, "agnostic": agnostic,
            "boxes": [[number(x) for x in row] for row in boxes],
            "scores": [[number(x) for x in row] for row in scores],
            "kept": kept}))
    return ("[\n" + ",\n".join(out) + "\n]\n").encode()


# --- writing and checking ----------------------------------------------------


def far(a, b):
    """Relative error in the L2 norm (a maximum would judge one sigmoid near 0.5 of a large logit)."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def compare(what, ours, theirs):
    assert ours.keys() == theirs.keys(), (what, ours.keys(), theirs.keys())
    worst = 0.0
    for name in ours:
        assert ours[name].shape == theirs[name].shape, (what, name)
        # Boxes and scores of out.0 apart: scores are tiny beside box pixels.
        parts = [np.s_[:, :4], np.s_[:, 4:]] if name == "out.0" else [np.s_[:]]
        worst = max([worst] + [far(ours[name][p], theirs[name][p]) for p in parts])
    print(f"{what}: {worst:.1e}")
    return worst <= 2e-5


def check():
    good = all([compare(name, network_golden(*net), load_file(OUT / f"{name}.safetensors"))
                for name, net in NETWORKS.items()])
    good &= nms_json() == (OUT / "nms.json").read_bytes()
    data = os.environ.get("HAUL_PARITY_DATA")
    if not data:
        print("comparison with the shared goldens: skipped (HAUL_PARITY_DATA is not set)")
        return good
    m = ([48, 96, 192, 384, 576], [2, 4, 4, 2, 2, 2, 2, 2], 80)
    for scale, (widths, depths, nc) in {"n": NETWORKS["yolov8n"][:3], "s": NETWORKS["yolov8s"][:3], "m": m}.items():
        name = f"synthetic_yolov8{scale}_detect"
        good &= compare(name, network_golden(widths, depths, nc, 96, 128),
                        load_file(Path(data) / "golden" / f"{name}.safetensors"))
    return good


def main():
    parser = argparse.ArgumentParser(description="write or check testdata/golden/")
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if check() else "goldens differ")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, net in NETWORKS.items():
        widths, depths, nc = net[:3]
        metadata = {"widths": json.dumps(widths, separators=(",", ":")),
                    "depths": json.dumps(depths, separators=(",", ":")), "nc": str(nc)}
        (OUT / f"{name}.safetensors").write_bytes(sorted_metadata(save(network_golden(*net), metadata)))
    (OUT / "nms.json").write_bytes(nms_json())


if __name__ == "__main__":
    main()
