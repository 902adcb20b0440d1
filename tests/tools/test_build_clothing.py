"""`tools/build_clothing.py`: two parquet files of photographs become one small one that `train` reads."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scripts import run_tool

from vqvae2.config.models import DataConfig
from vqvae2.data.images import open_images


def photographs(path: Path, labels: list[str]) -> Path:
    """A parquet file with one 40x24 px image of a colour of its own for each label."""
    rows = []
    for index, label in enumerate(labels):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 24), (40 * index, 90, 200)).save(buffer, "WEBP", lossless=True)
        rows.append(
            {"image": {"bytes": buffer.getvalue(), "path": f"{path.stem}-{index}.webp"}, "label": label}
        )
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_what_it_writes_is_read_with_classes_and_split(tmp_path: Path) -> None:
    train = photographs(tmp_path / "train.parquet", ["shoe", "hat", "shoe", "top"])
    test = photographs(tmp_path / "test.parquet", ["hat", "shoe"])
    out = tmp_path / "small.parquet"
    done = run_tool("build_clothing.py", "--train", train, "--test", test, "--size", 16, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 images, 3 classes" in done.stdout
    images = open_images(str(out), DataConfig(size=16), tmp_path / "data", seed=0, say=lambda line: None)
    assert images.classes == ("hat", "shoe", "top")
    assert (len(images.train), len(images.heldout)) == (4, 2)
    assert images.labels_of(images.train).tolist() == [1, 0, 1, 2]
    pixels = next(iter(images.raw([images.train])))[0]
    assert pixels.shape == (4, 16, 16, 3)
    assert abs(int(pixels[2, 8, 8, 0]) - 80) < 8, "WebP of quality 95 keeps a plain colour"


def test_a_file_without_labels_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"image": [1]}), path)
    done = run_tool("build_clothing.py", "--train", path, "--test", path, "--out", tmp_path / "out.parquet")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "label" in done.stderr
    assert not (tmp_path / "out.parquet").exists()
