#!/usr/bin/env python3
"""The network alone in OpenVINO or ONNX Runtime: letterboxed u8 pictures in memory to raw output.

Each worker is one thread with one request of one picture, as haul's are, and takes the next picture
when it is through; the conversion of u8 (H, W, 3) to the network's f32 (3, H, W) / 255 is in the
time, and in the graph, where both engines do it faster than numpy. The output (1, 4 + classes, N)
is not looked at further.

    python scripts/peers/model_only.py openvino --model yolov8n.onnx --images DIR --precision bf16
    python scripts/peers/model_only.py onnxruntime --model yolov8n.onnx --images DIR --workers 1 --threads 2

Tried with OpenVINO 2026.4 on two Zen 4 cores, and not faster: PERFORMANCE_HINT THROUGHPUT (gives the
same two streams), f32 pictures made by numpy (bf16: a tenth slower), an AsyncInferQueue of 2 or
4 requests, one stream of two threads (f32 a tenth, bf16 a quarter slower), pinning on or off, f16.
AsyncInferQueue with share_inputs=True on arrays that are not kept crashes.
"""

import argparse
import threading
import time

import numpy as np
from peer import answer, squares

PICTURES = 16


def openvino_runner(args):
    """A function that makes a worker's `infer(picture)`."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    core = ov.Core()
    prepare = PrePostProcessor(core.read_model(args.model))
    prepare.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    prepare.input().model().set_layout(ov.Layout("NCHW"))
    prepare.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
    compiled = core.compile_model(prepare.build(), "CPU", {
        "INFERENCE_PRECISION_HINT": args.precision,
        "NUM_STREAMS": args.workers,
        "INFERENCE_NUM_THREADS": args.workers * args.threads,
    })

    def worker():
        request = compiled.create_infer_request()
        picture = request.input_tensors[0].data

        def infer(given):
            picture[0] = given
            request.infer()
            return request.output_tensors[0].data

        return infer

    return worker, ov.__version__.split("-")[0]


def with_u8_input(model):
    """The ONNX model with (1, H, W, 3) bytes as its input."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    old = graph.input[0]
    _, c, h, w = (d.dim_value for d in old.type.tensor_type.shape.dim)
    graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "u8.scale"))
    for node in reversed([
        helper.make_node("Transpose", ["u8"], ["u8.planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["u8.planes"], ["u8.f32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["u8.f32", "u8.scale"], [old.name]),
    ]):
        graph.node.insert(0, node)
    graph.input.remove(old)
    graph.input.append(helper.make_tensor_value_info("u8", TensorProto.UINT8, [1, h, w, c]))
    return model


def onnxruntime_runner(args):
    import onnx
    import onnxruntime as ort

    if args.precision != "f32":
        raise SystemExit("ONNX Runtime is run in f32 only")
    model = with_u8_input(onnx.load(args.model)).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = args.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL

    def worker():
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda given: session.run(None, {"u8": given[None]})[0]

    return worker, ort.__version__


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=["openvino", "onnxruntime"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--workers", type=int, default=2, help="pictures at a time (2)")
    parser.add_argument("--threads", type=int, default=1, help="threads for each picture (1)")
    args = parser.parse_args()

    pictures = squares(args.images, PICTURES, args.imgsz)
    worker, version = (openvino_runner if args.engine == "openvino" else onnxruntime_runner)(args)
    workers = [worker() for _ in range(args.workers)]

    def go(seconds):
        counts = [0] * len(workers)
        start = time.perf_counter()

        def work(number):
            while time.perf_counter() - start < seconds:
                workers[number](pictures[(counts[number] + number) % len(pictures)])
                counts[number] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"images": sum(counts), "seconds": time.perf_counter() - start}

    answer(go, engine=args.engine, version=version)


if __name__ == "__main__":
    main()
