"""YOLOv8 in PyTorch for comparisons: batch normalisation folded, from letterboxed pictures to boxes and scores.

The network itself is that of scripts/train/yolov8.py; here are its weights (from haul's .safetensors), what makes
it as fast as such a network usually is in PyTorch, and what comes before and after it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "train"), str(SCRIPTS / "peers")]
from formula import u  # noqa: E402
from peer import letterbox, photographs  # noqa: E402
from yolov8 import REG_MAX, Conv, YOLOv8, anchors  # noqa: E402

CONF = 0.25
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCALES = {  # channels at strides 2..32; bottlenecks of layers 2, 4, 6, 8, 12, 15, 18, 21
    "n": ([16, 32, 64, 128, 256], [1, 2, 2, 1, 1, 1, 1, 1]),
    "s": ([32, 64, 128, 256, 512], [1, 2, 2, 1, 1, 1, 1, 1]),
    "m": ([48, 96, 192, 384, 576], [2, 4, 4, 2, 2, 2, 2, 2]),
}


def read_tensors(path):
    """Tensors in f32 and metadata of a .safetensors file."""
    data = bytearray(Path(path).read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        raw = torch.frombuffer(data, dtype=torch.uint8, count=end - start, offset=8 + size + start)
        tensors[name] = raw.clone().view(TYPES[entry["dtype"]]).view(entry["shape"]).float()
    return tensors, metadata


def write_tensors(path, tensors, metadata):
    """The same way back, all in f32."""
    header, start, body = {"__metadata__": metadata}, 0, []
    for name in sorted(tensors):
        body.append(tensors[name].numpy().astype("<f4").tobytes())
        end = start + len(body[-1])
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + b"".join(body))


def build(tensors, metadata):
    """The network of a state dict: its widths and depths are read from the shapes. In f32, on the CPU, for answers."""
    if metadata.get("act") != "silu" or "act_overrides" in metadata or int(metadata.get("reg_max", REG_MAX)) != REG_MAX:
        raise ValueError("this comparison knows networks with SiLU and 16 bins only")

    def channels(name):
        return tensors[f"{name}.weight"].shape[0]

    def depth(layer):
        return len({name.split(".")[3] for name in tensors if name.startswith(f"model.{layer}.m.")})

    widths = [channels(f"model.{layer}.conv") for layer in (0, 1, 3, 5, 7)]
    depths = [depth(layer) for layer in (2, 4, 6, 8, 12, 15, 18, 21)]
    model = YOLOv8(widths, depths, channels("model.22.cv3.0.2"))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith(("num_batches_tracked", "dfl.conv.weight"))]
    if missing or unexpected:
        raise ValueError(f"tensors are missing or too many: {(missing + unexpected)[:3]} ...")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(metadata["bn_eps"])
    return model.eval().requires_grad_(False)


def fold(model):
    """Batch normalisation into the convolutions before it, in f64."""
    for module in model.modules():
        if isinstance(module, Conv):
            old, bn = module.conv, module.bn
            scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
            new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)
            new.weight.data = (old.weight.double() * scale[:, None, None, None]).float()
            new.bias.data = (bn.bias.double() - bn.running_mean.double() * scale).float()
            module.conv, module.bn = new, nn.Identity()
    return model.eval().requires_grad_(False)


def load(path):
    return fold(build(*read_tensors(path)))


class Rows(nn.Module):
    """Letterboxed u8 pictures (B, H, W, 3) to x1, y1, x2, y2, score, class of every cell: (B, 6, N), in f32."""

    def __init__(self, network, height, width, dtype, device):
        super().__init__()
        # Rows of pixels are channels-last already, so the network's layout costs nothing.
        self.network = network.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        self.dtype = dtype
        centres, strides = anchors([(height // s, width // s) for s in (8, 16, 32)], device)
        self.register_buffer("centres", centres)
        self.register_buffer("strides", strides)
        self.register_buffer("bins", torch.arange(REG_MAX, dtype=torch.float32, device=device).view(1, 1, -1, 1))

    def forward(self, u8):
        x = u8.permute(0, 3, 1, 2).to(self.dtype) / 255
        boxes, scores, _ = self.network(x)
        best, cls = scores.max(1, keepdim=True)
        b, _, n = boxes.shape
        # In f32: pixels of a wide picture need more digits than f16 has.
        sides = (boxes.view(b, 4, REG_MAX, n).softmax(2, dtype=torch.float32) * self.bins).sum(2)
        low, high = (self.centres - sides[:, :2]) * self.strides, (self.centres + sides[:, 2:]) * self.strides
        return torch.cat((low, high, best.float().sigmoid(), cls.float()), 1)


def gflop(network, height, width):
    """10^9 operations (two for each multiply-add) of the convolutions for one picture."""
    count = 0

    def add(module, _, out):
        nonlocal count
        kernel = module.kernel_size[0] * module.kernel_size[1]
        count += 2 * module.in_channels * kernel * out.numel()

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Conv2d)]
    parameter = next(network.parameters())
    with torch.inference_mode():
        network(torch.zeros(1, 3, height, width, dtype=parameter.dtype, device=parameter.device))
    for hook in hooks:
        hook.remove()
    return count / 1e9


def squares(folder, count, side):
    """The first photographs of a folder, letterboxed as `haul --square` does: (count, side, side, 3), and how."""
    import cv2

    files = photographs(folder)[:count]
    out, how = np.empty((len(files), side, side, 3), np.uint8), []
    for path, square in zip(files, out):
        how.append(letterbox(cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), square))
    return files, out, how


def by_formula(scale, classes=80):
    """A network whose weights are made by the formula of scripts/formula.py, as those of the goldens are."""
    state = YOLOv8(*SCALES[scale], classes).state_dict()
    tensors = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        count = tensor.numel()
        if name.endswith(".bias"):
            values = 0.1 * u(name, count)
        elif name.endswith(".weight") and tensor.dim() == 4 and "dfl" not in name:
            values = u(name, count) * np.sqrt(3 * tensor.shape[0] / count) * 1.6
        else:  # as constructed: 1, 0, 1, 0..15
            values = tensor.numpy().ravel()
        tensors[name] = torch.from_numpy(values.astype(np.float32)).view(tensor.shape)
    metadata = {"format": "haul.model/1", "task": "detect", "act": "silu", "bn_eps": "0.001", "reg_max": str(REG_MAX),
                "names": json.dumps([f"class {i}" for i in range(classes)]), "strides": "[8,16,32]", "imgsz": "640"}
    return tensors, metadata


def calm(tensors, metadata, pictures, device, share=0.002):
    """Lower the class biases until this share of all cells calls something an object.

    By formula alone nearly all of them do, and whoever decodes only what passes would have all to do that a trained
    network spares it.
    """
    network = fold(build(tensors, metadata)).to(device)
    best = []
    with torch.inference_mode():
        for picture in pictures:
            x = torch.from_numpy(picture[None]).to(device).permute(0, 3, 1, 2) / 255
            # Logits, since scores near 1 are all the same.
            best.append(network(x)[1].max(1).values.flatten().double().cpu())
    shift = (torch.quantile(torch.cat(best), 1 - share) - np.log(CONF / (1 - CONF))).item()
    for level in range(3):
        tensors[f"model.22.cv3.{level}.2.bias"] -= shift
    return tensors


def synthetic(scale, path, pictures, device):
    """Write a network of this scale to `path`."""
    tensors, metadata = by_formula(scale)
    write_tensors(path, calm(tensors, metadata, pictures, device), metadata)
