"""Small images, and folders and tables of them, for the tests of `vqvae2.data`."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import TrainingOrder, pixel_batches
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.pixels import to_float

Batch = tuple[Tensor, Tensor]
LIVELY: dict[str, Any] = {"flip": True, "shift": 2, "crop": "random", "scale": 1.5}
RED, GREEN, BLUE = (220, 30, 20), (20, 200, 40), (30, 40, 210)


def config(**options: Any) -> DataConfig:
    """Settings for RGB images of 8 px, decoded in this process, not augmented unless `options` say so."""
    return DataConfig(**({"size": 8, "flip": False, "workers": 0} | options))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file in a format."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(colour: Any, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, size, colour)


def noise(number: int, size: tuple[int, int] = (8, 8), channels: int = 3) -> Image.Image:
    """An image of noise that depends on `number` alone."""
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def folder_of(root: Path, count: int, classes: tuple[str, ...] = (), **options: Any) -> Path:
    """A folder of `count` PNGs, one after the other for each class in turn; image i is `noise(i)`."""
    for number in range(count):
        target = root / classes[number % len(classes)] if classes else root
        target.mkdir(parents=True, exist_ok=True)
        noise(number, **options).save(target / f"{number:03d}.png")
    return root


def opened(data: object, run: Path, says: list[str] | None = None, seed: int = 0, **options: Any) -> ImageSet:
    """`open_images` without printing; its messages are appended to `says`."""
    say = (says if says is not None else []).append
    return open_images(str(data), config(**options), run / "data", seed=seed, say=say)


def shows(images: ImageSet, index: int, number: int) -> bool:
    """Whether image `index` is `noise(number)`."""
    return bool(np.array_equal(images.pixels([index])[0].numpy(), np.asarray(noise(number))))


def parquet_of(path: Path, count: int, start: int = 0, **columns: list[Any]) -> Path:
    """A parquet file of the images `noise(start)`, `noise(start + 1)`, ..., and of other columns."""
    cells = [
        {"bytes": encoded(noise(start + number)), "path": f"p{start + number}.png"} for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells} | columns), path)
    return path


def tar_of(path: Path, count: int, start: int = 0, **members: Any) -> Path:
    """A WebDataset shard: NNN.png and, per keyword, NNN.<keyword> with what that function returns for the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in range(start, start + count):
            files_by_kind = {"png": encoded(noise(number))} | {
                kind: make(number) for kind, make in members.items()
            }
            for kind, data in files_by_kind.items():
                info = tarfile.TarInfo(f"{number:04d}.{kind}")
                info.size = len(data)
                file.addfile(info, BytesIO(data))
    return path


def break_some(root: Path) -> None:
    """Add four files that cannot be used to a folder, one of them because of max_pixels = 2000."""
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("hello")
    (root / "cut\n.png").write_bytes(encoded(noise(1, (64, 64)))[:300])
    noise(1, (50, 50)).save(root / "bomb.png")


def take(images: ImageSet, **options: Any) -> list[Batch]:
    """Nine training batches of 8."""
    options = {"batch": 8, "seed": 3, "stop": 9} | options
    order = {name: options.pop(name) for name in ("batch", "seed", "rank", "world") if name in options}
    steps = TrainingOrder(images.train, **order)
    return [(to_float(x), y) for x, y in pixel_batches(images, steps, config(**LIVELY), **options)]


def same(left: list[Batch], right: list[Batch]) -> bool:
    """Whether two lists of batches are equal."""
    return len(left) == len(right) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


def dicom(path: Path, frames: Any, **more: Any) -> Path:
    """A DICOM file of 12-bit values in uint16 frames [N, H, W], or of one image [H, W]."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

    storage = EnhancedCTImageStorage if frames.ndim == 3 else CTImageStorage
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = storage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = storage, "1.2.3"
    file.Rows, file.Columns = frames.shape[-2:]
    if frames.ndim == 3:
        file.NumberOfFrames = len(frames)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    for name, value in more.items():
        setattr(file, name, value)
    file.PixelData = frames.tobytes()
    pydicom.dcmwrite(path, file, enforce_file_format=True)
    return path
