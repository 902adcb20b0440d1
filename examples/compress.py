"""Compress an image with the model of the package, and show what a file that is cut off still holds.

python examples/compress.py
"""

import vqvae2

run = vqvae2.load("emoji64")
image = run.sample(1, "Animals & Nature", seed=7)[0]
data = run.compress(image, "Animals & Nature")
print(f"{image.numel()} bytes of pixels are {len(data)} bytes")
print("worst difference:", float((run.decompress(data) - run.reconstruct(image[None])[0]).abs().max()))
ends = run.codec.prefixes(data)
coarse = run.decompress(data[: ends[0]])
print(f"the first {ends[0]} bytes hold the coarse level; its image has the shape {tuple(coarse.shape)}")
