#!/usr/bin/env python3
"""Write YOLOv8 detect networks whose weights are made by formula, as ONNX and as .safetensors.

Peers read the ONNX file and haul the other, so that both run the same network without any
trained weights of that scale at hand. The formula is that of the goldens (scripts/formula.py and
scripts/goldens.py): weights uniform, scaled by sqrt(3 / fan) * 1.6; biases 0.1 * u; batch
normalisation as constructed. The graph has the nodes that exports of YOLOv8 usually have: batch
normalisation folded, SiLU as Sigmoid and Mul, boxes decoded to cx, cy, w, h, one output (1, 4 + nc, N).

    python scripts/peers/onnx_synthetic.py s --height 640 --width 640 --onnx s.onnx --safetensors s.safetensors
    python scripts/peers/onnx_synthetic.py --check      against the goldens under HAUL_PARITY_DATA/golden,
                                                        or, without that, testdata/golden (n and s)

Such a network calls nearly everything an object. Where only scores above a threshold are decoded it
therefore has more to do than a trained one: compare rates of the full decode.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "train")]
from formula import u  # noqa: E402
from tensorfile import sorted_metadata  # noqa: E402

SCALES = {  # channels at strides 2..32; bottlenecks of layers 2, 4, 6, 8, 12, 15, 18, 21
    "n": ([16, 32, 64, 128, 256], [1, 2, 2, 1, 1, 1, 1, 1]),
    "s": ([32, 64, 128, 256, 512], [1, 2, 2, 1, 1, 1, 1, 1]),
    "m": ([48, 96, 192, 384, 576], [2, 4, 4, 2, 2, 2, 2, 2]),
}
REG_MAX = 16
BN_EPS = 1e-3


class Network:
    """Builds the ONNX graph and collects, under the names of the state dict, what it is made of."""

    def __init__(self):
        self.nodes, self.initializers, self.state = [], [], {}

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op, inputs, name, outputs=1, **attributes):
        out = [f"{name}.{i}" for i in range(outputs)] if outputs > 1 else [name]
        self.nodes.append(helper.make_node(op, inputs, out, name=name, **attributes))
        return out if outputs > 1 else name

    def plain(self, name, x, c_in, c_out):
        """A 1x1 convolution with bias: the head's last layers."""
        weight = by_formula(f"{name}.weight", (c_out, c_in, 1, 1))
        bias = (0.1 * u(f"{name}.bias", c_out)).astype(np.float32)
        self.state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node("Conv", inputs, f"{name}/Conv", kernel_shape=[1, 1])

    def conv(self, name, x, c_in, c_out, k=1, s=1):
        """Convolution, batch normalisation (folded), SiLU."""
        weight = by_formula(f"{name}.conv.weight", (c_out, c_in, k, k))
        bias = (0.1 * u(f"{name}.bn.bias", c_out)).astype(np.float32)
        one, zero = np.ones(c_out, np.float32), np.zeros(c_out, np.float32)
        self.state |= {f"{name}.conv.weight": weight, f"{name}.bn.weight": one, f"{name}.bn.bias": bias,
                       f"{name}.bn.running_mean": zero, f"{name}.bn.running_var": one}
        folded = (weight / np.sqrt(1.0 + BN_EPS)).astype(np.float32)
        inputs = [x, self.constant(f"{name}.conv.weight", folded), self.constant(f"{name}.conv.bias", bias)]
        y = self.node("Conv", inputs, f"{name}/Conv", kernel_shape=[k, k], strides=[s, s], pads=[k // 2] * 4)
        return self.node("Mul", [y, self.node("Sigmoid", [y], f"{name}/Sigmoid")], f"{name}/SiLU")

    def concat(self, name, inputs):
        return self.node("Concat", inputs, f"{name}/Concat", axis=1)

    def upsample(self, name, x):
        scales = self.constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32))
        return self.node("Resize", [x, "", scales], f"{name}/Resize", mode="nearest",
                         coordinate_transformation_mode="asymmetric", nearest_mode="floor")

    def c2f(self, name, x, c_in, c_out, n, shortcut):
        c = c_out // 2
        sizes = self.constant(f"{name}.sizes", np.array([c, c], np.int64))
        parts = self.node("Split", [self.conv(f"{name}.cv1", x, c_in, 2 * c), sizes], f"{name}/Split", 2, axis=1)
        for i in range(n):
            y = self.conv(f"{name}.m.{i}.cv1", parts[-1], c, c, 3)
            y = self.conv(f"{name}.m.{i}.cv2", y, c, c, 3)
            parts.append(self.node("Add", [parts[-1], y], f"{name}.m.{i}/Add") if shortcut else y)
        return self.conv(f"{name}.cv2", self.concat(name, parts), (2 + n) * c, c_out)

    def sppf(self, name, x, c):
        parts = [self.conv(f"{name}.cv1", x, c, c // 2)]
        for i in range(3):
            parts.append(self.node("MaxPool", [parts[-1]], f"{name}/MaxPool.{i}", kernel_shape=[5, 5], pads=[2] * 4))
        return self.conv(f"{name}.cv2", self.concat(name, parts), c // 2 * 4, c)

    def head(self, features, channels, nc, height, width):
        boxes, scores, centres, strides = [], [], [], []
        hidden = {"cv2": max(channels[0] // 4, 4 * REG_MAX), "cv3": max(channels[0], min(nc, 100))}
        for level, (x, c) in enumerate(zip(features, channels)):
            for branch, out, kept in (("cv2", 4 * REG_MAX, boxes), ("cv3", nc, scores)):
                name = f"model.22.{branch}.{level}"
                y = self.conv(f"{name}.0", x, c, hidden[branch], 3)
                y = self.conv(f"{name}.1", y, hidden[branch], hidden[branch], 3)
                y = self.plain(f"{name}.2", y, hidden[branch], out)
                shape = self.constant(f"{name}.shape", np.array([1, out, -1], np.int64))
                kept.append(self.node("Reshape", [y, shape], f"{name}/Reshape"))
            stride = 8 << level
            y, x = np.mgrid[: height // stride, : width // stride].astype(np.float32) + 0.5
            centres.append(np.stack((x.ravel(), y.ravel())))
            strides.append(np.full((1, x.size), stride, np.float32))
        head = "model.22"
        logits = self.node("Concat", boxes, f"{head}/boxes", axis=2)
        probabilities = self.node("Sigmoid", [self.node("Concat", scores, f"{head}/scores", axis=2)], f"{head}/Sigmoid")

        # The expectation over the bins of each side, as a 1x1 convolution with weights 0..15.
        bins = np.arange(REG_MAX, dtype=np.float32).reshape(1, REG_MAX, 1, 1)
        self.state[f"{head}.dfl.conv.weight"] = bins
        four = self.constant(f"{head}.dfl.shape", np.array([1, 4, REG_MAX, -1], np.int64))
        three = self.constant(f"{head}.dfl.shape_1", np.array([1, 4, -1], np.int64))
        x = self.node("Transpose", [self.node("Reshape", [logits, four], f"{head}/dfl/Reshape")],
                      f"{head}/dfl/Transpose", perm=[0, 2, 1, 3])
        x = self.node("Softmax", [x], f"{head}/dfl/Softmax", axis=1)
        x = self.node("Conv", [x, self.constant(f"{head}.dfl.conv.weight", bins)], f"{head}/dfl/Conv", kernel_shape=[1, 1])
        x = self.node("Reshape", [x, three], f"{head}/dfl/Reshape_1")

        sizes = self.constant(f"{head}.sizes", np.array([2, 2], np.int64))
        near, far = self.node("Split", [x, sizes], f"{head}/Split", 2, axis=1)
        centre = self.constant(f"{head}.centres", np.concatenate(centres, 1)[None])
        low = self.node("Sub", [centre, near], f"{head}/Sub")
        high = self.node("Add", [centre, far], f"{head}/Add")
        two = self.constant(f"{head}.two", np.array(2, np.float32))
        middle = self.node("Div", [self.node("Add", [low, high], f"{head}/Add_1"), two], f"{head}/Div")
        size = self.node("Sub", [high, low], f"{head}/Sub_1")
        x = self.node("Concat", [middle, size], f"{head}/Concat", axis=1)
        x = self.node("Mul", [x, self.constant(f"{head}.strides", np.concatenate(strides, 1)[None])], f"{head}/Mul")
        self.node("Concat", [x, probabilities], "output0", axis=1)
        return sum(s.size for s in strides)


def by_formula(name, shape):
    count = int(np.prod(shape))
    return (u(name, count) * np.sqrt(3 * shape[0] / count) * 1.6).astype(np.float32).reshape(shape)


def build(scale, nc, height, width):
    """The ONNX model and the state dict. Layers are numbered as in src/yolo/wiring.rs."""
    if height % 32 or width % 32:
        sys.exit("height and width must be multiples of 32")
    (a, b, c, d, e), depths = SCALES[scale]
    g = Network()
    x = g.conv("model.0", "images", 3, a, 3, 2)
    x = g.conv("model.1", x, a, b, 3, 2)
    x = g.c2f("model.2", x, b, b, depths[0], True)
    x = g.conv("model.3", x, b, c, 3, 2)
    x4 = g.c2f("model.4", x, c, c, depths[1], True)
    x = g.conv("model.5", x4, c, d, 3, 2)
    x6 = g.c2f("model.6", x, d, d, depths[2], True)
    x = g.conv("model.7", x6, d, e, 3, 2)
    x = g.c2f("model.8", x, e, e, depths[3], True)
    x9 = g.sppf("model.9", x, e)
    x = g.concat("model.11", [g.upsample("model.10", x9), x6])
    x12 = g.c2f("model.12", x, e + d, d, depths[4], False)
    x = g.concat("model.14", [g.upsample("model.13", x12), x4])
    x15 = g.c2f("model.15", x, d + c, c, depths[5], False)
    x = g.concat("model.17", [g.conv("model.16", x15, c, c, 3, 2), x12])
    x18 = g.c2f("model.18", x, c + d, d, depths[6], False)
    x = g.concat("model.20", [g.conv("model.19", x18, d, d, 3, 2), x9])
    x21 = g.c2f("model.21", x, d + e, e, depths[7], False)
    count = g.head([x15, x18, x21], [c, d, e], nc, height, width)

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        g.nodes, f"yolov8{scale} by formula",
        [value("images", TensorProto.FLOAT, [1, 3, height, width])],
        [value("output0", TensorProto.FLOAT, [1, 4 + nc, count])], g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model, g.state


def safetensors_bytes(state, nc, imgsz):
    """The form that `haul model convert` writes; src/model/safetensors.rs says what each key means."""
    from safetensors.numpy import save

    def text(value):
        return json.dumps(value, separators=(",", ":"))

    return sorted_metadata(save(state, {
        "format": "haul.model/1", "task": "detect", "act": "silu", "bn_eps": str(BN_EPS),
        "names": text([f"class {i}" for i in range(nc)]), "reg_max": str(REG_MAX),
        "strides": text([8, 16, 32]), "imgsz": str(imgsz)}))


def check():
    import onnxruntime
    from safetensors.numpy import load_file

    data = os.environ.get("HAUL_PARITY_DATA")
    if data:
        cases = [(s, 96, 128, Path(data) / "golden" / f"synthetic_yolov8{s}_detect.safetensors") for s in "nsm"]
    else:
        cases = [(s, 64, 96, ROOT / "testdata" / "golden" / f"yolov8{s}.safetensors") for s in "ns"]
    good = True
    for scale, height, width, path in cases:
        model, _ = build(scale, 80, height, width)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        picture = (0.5 * u("input", 3 * height * width) + 0.5).astype(np.float32).reshape(1, 3, height, width)
        ours, truth = session.run(None, {"images": picture})[0], load_file(path)["out.0"]
        # Boxes and scores apart: scores are tiny beside box pixels.
        far = [float(np.linalg.norm(ours[:, p] - truth[:, p]) / np.linalg.norm(truth[:, p]))
               for p in (np.s_[:4], np.s_[4:])]
        print(f"yolov8{scale} {height}x{width}: boxes {far[0]:.1e}, scores {far[1]:.1e}")
        good &= max(far) <= 2e-5
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", nargs="?", choices=SCALES)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--safetensors", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the goldens, by ONNX Runtime")
    args = parser.parse_args()
    if args.check:
        sys.exit(0 if check() else "goldens differ")
    if not args.scale or not (args.onnx or args.safetensors):
        parser.error("say a scale, and --onnx or --safetensors (or --check)")
    model, state = build(args.scale, args.classes, args.height, args.width)
    if args.onnx:
        args.onnx.write_bytes(model.SerializeToString())
    if args.safetensors:
        args.safetensors.write_bytes(safetensors_bytes(state, args.classes, max(args.height, args.width)))


if __name__ == "__main__":
    main()
