"""Draw images with onnxruntime, without torch: python examples/onnx_sampling.py DIR [N] [TEMPERATURE] > codes.json

DIR is what `vqvae2 export RUN --onnx DIR` wrote. The images are written to samples.png, one below the other.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

folder, n, temperature = Path(sys.argv[1]), int((sys.argv[2:] or [4])[0]), float((sys.argv[3:] or [1])[0])
model, random = json.loads((folder / "model.json").read_text()), np.random.default_rng(0)
sessions = {file: onnxruntime.InferenceSession(folder / file) for file in model["files"]}
values = {"labels": np.arange(n) % max(1, len(model["classes"]))}  # by name, what the graphs read and write


def call(file: str) -> None:
    names = [entry.name.removesuffix("_next") for entry in sessions[file].get_outputs()]
    inputs = {entry.name: values[entry.name] for entry in sessions[file].get_inputs()}
    values.update(zip(names, sessions[file].run(None, inputs), strict=True))


for number, level in enumerate(model["levels"]):
    (height, width), k = level["grid"], level["vocabulary"]
    codes = np.full((n, (height + 1) * width), k)  # begins with a row above the grid, of k: "no code"
    for name, shape in level["caches"].items():
        values[name] = np.zeros([n if size == "B" else size for size in shape], np.float32)
    if level["context"]:
        call(level["context"])
    for here in range(height * width):
        values |= {"position": np.array([here]), "row": np.array([here // width])}
        values |= {"previous": codes[:, here + width - 1], "above": codes[:, here : here + width]}
        if level["row"] and here % width == 0:
            call(level["row"])
        call(level["step"])
        noise = temperature * random.gumbel(size=(n, k))  # the largest of logits + noise is one draw
        codes[:, here + width] = (values["logits"] + noise).argmax(1)
    values[f"codes_{number}"] = codes[:, width:].reshape(n, height, width)
call("decoder-sharp.onnx" if "decoder-sharp.onnx" in sessions else "decoder.onnx")
pixels = ((values["images"].transpose(0, 2, 3, 1) + 1) * 127.5).round().astype(np.uint8)
Image.fromarray(np.concatenate(pixels).squeeze()).save("samples.png")
print(json.dumps([values[f"codes_{number}"].tolist() for number in range(len(model["levels"]))]))
