#!/usr/bin/env python3
"""Does the PyTorch network of bench.py say what haul says? In f32, on photographs.

    python scripts/gpu/check_torch.py BINARY MODEL PICTURES [--torch-device cuda] [--count N]

Both get squares. haul reads and letterboxes with its own code and PyTorch's side with OpenCV's, so a few pixels
differ by one; what is allowed is what is allowed between haul and other implementations (compare.py), 1 %.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import compare
import network
import numpy as np
import torch
from bench import converted
from machine import Haul


def answers(rows, pictures, how, files):
    """As lines of haul, by file name, without suppression."""
    found = {}
    for path, picture, (scale, left, top, width, height) in zip(files, pictures, how):
        with torch.inference_mode():
            cells = rows(torch.from_numpy(picture[None]).to(rows.bins.device))[0].double().cpu().numpy().T
        cells = cells[cells[:, 4] > network.CONF]
        boxes = (cells[:, :4] - [left, top, left, top]) / scale
        boxes = np.clip(boxes, 0, [width, height, width, height])
        order = np.argsort(-cells[:, 4], kind="stable")
        found[Path(path).name] = compare.Found(width, height, cells[order, 5], cells[order, 4], boxes[order])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("--torch-device", default="cpu")
    parser.add_argument("--count", type=int, default=10**6)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as work, open(Path(work) / "log", "w") as log:
        haul = Haul(args.binary, log)
        model = converted(haul, args.model, Path(work))
        done = haul.run(["run", "--model", model, "--input", args.pictures, "--output", f"{work}/out", "--square",
                         "--precision", "f32", "--iou", "1", "--max-det", "8400", *haul.where("cpu")], 600)
        if done.code:
            sys.exit(f"haul ended with exit {done.code}: {done.last_words()}")
        theirs = compare.lines(f"{work}/out")
        files, pictures, how = network.squares(args.pictures, args.count, 640)
        rows = network.Rows(network.load(model), 640, 640, torch.float32, args.torch_device)
        ours = answers(rows, pictures, how, files)
    both = [(compare.found(theirs[name]), ours[name]) for name in sorted(ours)]
    (missing, of_haul), (extra, of_torch) = compare.parity(both)
    # A box at the edge of 0.25 may be on one side only: the second output has it from 0.2 on in other comparisons.
    off = compare.errors([(a.above(0.26), b) for a, b in both], 640)
    print(f"{len(both)} pictures: {missing} of haul's {of_haul} cells have no partner in PyTorch's, {extra} of "
          f"PyTorch's {of_torch} none in haul's; boxes off by mean {off['box_mean']:.4f} px, p99 {off['box_p99']:.3f}, "
          f"scores by mean {off['score_mean']:.6f}, lost {off['lost']}")
    good = of_haul and missing * 100 <= of_haul and extra * 100 <= of_torch
    print("they agree" if good else "they DIFFER")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
