#!/usr/bin/env python3
"""`yolo predict` as its users call it: Ultralytics' own program, on the CPU, one picture at a time.

    python scripts/peers/yolo_predict.py --model yolov8n.pt --images DIR            answers "go SECONDS"
    python scripts/peers/yolo_predict.py --model yolov8n.pt --images DIR --once     predicts the folder, once

Every setting is its default (conf 0.25, rectangular letterbox, f32) but for the talk, which is off.
By default it uses one core less than there are; --threads N gives PyTorch N instead.
Ultralytics is AGPL-3.0: it is run here as it comes, beside haul.
"""

import argparse
import json
import os
import time

# No look-ups, no installations of its own while it is timed.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

from peer import answer  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--threads", type=int, metavar="N")
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()

    import torch
    import ultralytics

    model = ultralytics.YOLO(args.model)

    def predict():
        return model.predict(source=args.images, stream=True, conf=0.25, device="cpu", verbose=False)

    if args.once:
        images = boxes = 0
        for result in predict():
            images, boxes = images + 1, boxes + len(result.boxes)
        print(json.dumps({"images": images, "boxes": boxes}))
        return

    if args.threads:
        next(predict())  # choosing the device sets the threads; set them again after that
        torch.set_num_threads(args.threads)

    def endless():
        while True:
            yield from predict()

    results = endless()

    def go(seconds):
        images = boxes = 0
        start = time.perf_counter()
        while (took := time.perf_counter() - start) < seconds:
            boxes += len(next(results).boxes)
            images += 1
        return {"images": images, "seconds": took, "boxes": boxes}

    answer(go, engine="ultralytics", version=ultralytics.__version__, torch=torch.__version__,
           threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
