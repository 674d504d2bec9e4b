#!/usr/bin/env python3
"""Does the PyTorch network of bench.py say what haul says? In f32, on photographs.

    python scripts/gpu/check_torch.py BINARY MODEL PICTURES [--torch-device cuda] [--count N]

Both get the same pixels: letterboxed squares, which haul reads from PNG files. haul computes on the CPU.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import compare
import cv2
import network
import torch
from bench import SIDE, converted
from machine import Haul

# Means: single precision in another order differs by a tenth of that.
SCORE, BOX = 1e-5, 2e-3


def answers(rows, squares):
    """Cells above 0.25, best first, as an output of haul without suppression has them."""
    found = []
    for square in squares:
        with torch.inference_mode():
            cells = rows(torch.from_numpy(square[None]).to(rows.bins.device))[0].double().cpu().T
        cells = cells[cells[:, 4] > network.CONF]
        cells = cells[cells[:, 4].argsort(descending=True, stable=True)].numpy()
        found.append(compare.Found(SIDE, SIDE, cells[:, 5], cells[:, 4], cells[:, :4].clip(0, SIDE)))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("pictures")
    parser.add_argument("--torch-device", default="cpu")
    parser.add_argument("--count", type=int, default=64, help="pictures (64)")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory(prefix="haul-torch-") as work, open(Path(work) / "log", "w") as log:
        haul = Haul(args.binary, log)
        model = converted(haul, args.model, Path(work))
        _, squares, _ = network.squares(args.pictures, args.count, SIDE)
        folder = Path(work) / "squares"
        folder.mkdir()
        for number, square in enumerate(squares):
            cv2.imwrite(str(folder / f"{number:06}.png"), cv2.cvtColor(square, cv2.COLOR_RGB2BGR))
        done = haul.run(["run", "--model", model, "--input", folder, "--output", f"{work}/out", "--square",
                         "--imgsz", SIDE, "--precision", "f32", "--iou", "1", "--max-det", "8400",
                         *haul.where("cpu")], 600)
        if done.code:
            sys.exit(f"haul ended with exit {done.code}: {done.last_words()}")
        theirs = compare.lines(f"{work}/out")
        ours = answers(network.Rows(network.load(model), SIDE, SIDE, torch.float32, args.torch_device), squares)
    both = [(compare.found(theirs[name]), found) for name, found in zip(sorted(theirs), ours, strict=True)]
    (missing, of_haul), (extra, of_torch) = compare.parity(both)
    # From 0.26, since a score at the edge of 0.25 may be on one side only.
    off = compare.errors([(a.above(0.26), b) for a, b in both], SIDE)
    print(f"{len(both)} pictures: {missing} of haul's {of_haul} cells have no partner in PyTorch's, {extra} of "
          f"PyTorch's {of_torch} none in haul's; boxes off by mean {off['box_mean']:.5f} px, p99 {off['box_p99']:.4f}, "
          f"scores by mean {off['score_mean']:.7f}")
    good = of_haul and not (missing or extra or off["lost"]) and off["box_mean"] <= BOX and off["score_mean"] <= SCORE
    print("they agree" if good else "they DIFFER")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
