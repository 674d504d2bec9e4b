"""What the long-lived peers share: how they are asked, and how a picture gets its square.

A peer is started once, loads and warms itself, and says so with one JSON line. After that every line
"go SECONDS" on standard input makes it work for so long and answer with one JSON line, at least
{"images": N, "seconds": S}. Its start is thus in no rate. The end of the input ends it.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

GREY = 114  # what the letterbox fills with


def answer(go, **about):
    """Serves `go(seconds) -> dict` on standard input and output, once it has warmed up."""
    # Libraries print; only answers may go to the real standard output.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    go(1.0)
    print(json.dumps({"ready": True} | about), file=out)
    for line in sys.stdin:
        verb, seconds = line.split()
        assert verb == "go", line
        before = time.process_time()
        said = go(float(seconds))
        print(json.dumps(said | {"cpu_seconds": time.process_time() - before}), file=out)


def photographs(folder):
    files = sorted(str(path) for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        sys.exit(f"no JPEG files in {folder}")
    return files


def letterbox(picture, square):
    """Draws `picture` (h, w, 3) into `square` (s, s, 3), as `haul --square` does, and says how:
    scale, left, top, width and height of the picture."""
    import cv2

    side = square.shape[0]
    h, w = picture.shape[:2]
    scale = min(side / h, side / w)
    new_h, new_w = round(h * scale), round(w * scale)
    top, left = round((side - new_h) / 2 - 0.1), round((side - new_w) / 2 - 0.1)
    if (new_h, new_w) != (h, w):
        picture = cv2.resize(picture, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    square[:top] = square[top + new_h:] = GREY
    middle = square[top:top + new_h]
    middle[:, :left] = middle[:, left + new_w:] = GREY
    middle[:, left:left + new_w] = picture
    return scale, left, top, w, h


def squares(folder, count, side):
    """The first photographs of a folder, letterboxed: u8 (count, side, side, 3) in RGB."""
    import simplejpeg

    files = photographs(folder)[:count]
    out = np.empty((len(files), side, side, 3), np.uint8)
    for path, square in zip(files, out):
        letterbox(simplejpeg.decode_jpeg(Path(path).read_bytes()), square)
    return out
