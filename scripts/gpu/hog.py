#!/usr/bin/env python3
"""Take a card's memory away, all but so many GiB, when a line comes on standard input, and until that ends.

    python scripts/gpu/hog.py cuda:0 6
    python scripts/gpu/hog.py cpu 6         takes 64 MiB of the machine's own: to try the script
"""

import sys

import torch


def take(device, leave):
    """As much as there is: who else takes some at the same time may be quicker."""
    for _ in range(20):
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else leave + 2**26
        try:
            return torch.empty(max(free - leave, 0), dtype=torch.uint8, device=device), free
        except torch.cuda.OutOfMemoryError:
            continue
    return torch.empty(0), free


def main():
    device, leave = torch.device(sys.argv[1]), int(float(sys.argv[2]) * 2**30)
    torch.zeros(1, device=device).item()  # what a program takes to be there at all
    print("ready", flush=True)
    sys.stdin.readline()
    taken, free = take(device, leave)
    print(f"took {taken.numel() / 2**30:.1f} GiB of the {free / 2**30:.1f} that were free", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
