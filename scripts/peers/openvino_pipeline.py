#!/usr/bin/env python3
"""JPEG files to boxes with OpenVINO, as fast as we could get it: the peer of `haul --square`.

    python scripts/peers/openvino_pipeline.py --model yolov8n.onnx --images DIR --precision bf16
    python scripts/peers/openvino_pipeline.py --model yolov8n.onnx --images DIR --show 3

Each worker is a thread with a request of its own (as many streams as workers, one thread each): it
reads and decodes a file (libjpeg-turbo by simplejpeg), letterboxes it to the square with cv2 straight
into the request's u8 input, runs the network, and suppresses boxes per class (conf 0.25, IoU 0.7,
300 at most) with cv2.dnn.NMSBoxesBatched. Python's lock is free while each of these works, so
one worker's decoding overlaps with the other's network and both cores stay at work. Conversion to
f32 / 255, and the best class of each anchor, are in the graph.

Tried on two Zen 4 cores, bf16, in images for two core-seconds: this 39.1. The whole output taken to
numpy and its classes searched there 38.1, ReduceMax in the graph 38.3, decoding only the surviving
boxes from logits 38.8; an AsyncInferQueue of 2 requests with boxes in its callbacks, decoding ahead
in one or two more threads 37.4; of 4 requests 37.5; three workers on two streams 38.4; pinning,
PERFORMANCE_HINT and f16 no different.

JPEGs only, without EXIF orientation: pictures that are stored turned would come out turned.
"""

import argparse
import itertools
import json
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import openvino as ov
import simplejpeg
from openvino import opset13
from openvino.preprocess import PrePostProcessor
from peer import answer, letterbox, photographs

CONF, IOU, MAX_DET = 0.25, 0.7, 300


def compile_model(path, precision, workers):
    core = ov.Core()
    model = core.read_model(path)
    # The export ends by joining boxes (1, 4, N) and scores (1, classes, N); take them before that.
    joined = model.outputs[0].get_node().input_value(0).get_node()
    if joined.get_type_name() != "Concat" or joined.get_input_size() != 2:
        raise SystemExit(f"{path}: the graph does not end like an export of YOLOv8")
    boxes, scores = joined.input_value(0), joined.input_value(1)
    best = opset13.topk(scores, opset13.constant(np.int64(1)), 1, "max", "none")
    model = ov.Model([boxes, best.output(0), best.output(1)], model.get_parameters(), "yolov8")
    prepare = PrePostProcessor(model)
    prepare.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    prepare.input().model().set_layout(ov.Layout("NCHW"))
    prepare.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    return core.compile_model(prepare.build(), "CPU", {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": workers,
    })


def suppress(boxes, scores, classes, placed):
    """Rows x1, y1, x2, y2, score, class in pixels of the picture."""
    scale, left, top, w, h = placed
    found = np.flatnonzero(scores > CONF)
    if not len(found):
        return np.empty((0, 6), np.float32)
    size = boxes[2:, found]
    corner = boxes[:2, found] - size / 2
    score, label = scores[found], classes[found].astype(np.int32)
    kept = cv2.dnn.NMSBoxesBatched(np.concatenate((corner, size)).T, score, label, CONF, IOU)[:MAX_DET]
    out = np.empty((len(kept), 6), np.float32)
    out[:, :2] = corner[:, kept].T
    out[:, 2:4] = out[:, :2] + size[:, kept].T
    out[:, :4] = (out[:, :4] - (left, top, left, top)) / scale
    np.clip(out[:, :4], 0, (w, h, w, h), out=out[:, :4])
    out[:, 4], out[:, 5] = score[kept], label[kept]
    return out


class Worker:
    def __init__(self, compiled):
        self.request = compiled.create_infer_request()
        self.square = self.request.input_tensors[0].data[0]

    def detect(self, path):
        # simplejpeg gives RGB, and three channels for grey pictures too.
        placed = letterbox(simplejpeg.decode_jpeg(Path(path).read_bytes()), self.square)
        self.request.infer()
        boxes, scores, classes = (tensor.data for tensor in self.request.output_tensors)
        return suppress(boxes[0], scores[0, 0], classes[0, 0], placed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", type=int, metavar="N", help="print the boxes of the first N pictures and stop")
    args = parser.parse_args()

    cv2.setNumThreads(1)
    compiled = compile_model(args.model, args.precision, args.workers)
    workers = [Worker(compiled) for _ in range(args.workers)]
    files = photographs(args.images)
    if args.show is not None:
        for path in files[: args.show]:
            print(json.dumps({"image": Path(path).name, "boxes": workers[0].detect(path).round(4).tolist()}))
        return

    endless, lock = itertools.cycle(files), threading.Lock()

    def go(seconds):
        counts, boxes = [0] * len(workers), [0] * len(workers)
        start = time.perf_counter()

        def work(number):
            while time.perf_counter() - start < seconds:
                with lock:
                    path = next(endless)
                boxes[number] += len(workers[number].detect(path))
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"images": sum(counts), "seconds": time.perf_counter() - start, "boxes": sum(boxes)}

    answer(go, engine="openvino", version=ov.__version__.split("-")[0])


if __name__ == "__main__":
    main()
