"""`tools/build_photographs.py`: photographs become patches of one size, with whole photographs held out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scripts import run_tool


def test_patches_touch_and_keep_their_photographs_split(tmp_path: Path) -> None:
    """Of 100x70 px, short sides of 64 and 32 and patches of 32 px give 2 x 2 and 1 x 1; a short side of 80 gives none."""
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    ramp = np.broadcast_to(np.linspace(0, 255, 100)[None, :, None], (70, 100, 3)).astype(np.uint8)
    for number in range(30):
        Image.fromarray(ramp).save(photos / ("more" if number % 2 else ".") / f"{number}.png")
    also, out = tmp_path / "also.parquet", tmp_path / "out.parquet"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": buffer.getvalue(), "path": "a"}}] * 5), also)
    sizes = ["--short", 64, 32, 80, "--patch", 32]
    done = run_tool("build_photographs.py", photos, *sizes, "--also", also, "--also-n", 3, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 30 * (2 * 2 + 1) + 3
    assert f"{len(rows)} images, of 30 photographs" in done.stdout
    splits: dict[str, set[str]] = {}
    for row in rows[:-3]:
        splits.setdefault(row["image"]["path"].split("-")[0], set()).add(row["split"])
    assert all(len(split) == 1 for split in splits.values())
    assert 0 < sum(split == {"test"} for split in splits.values()) < 10
    patches = [
        np.array(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L"), np.float64) for row in rows[:-3]
    ]
    assert {patch.shape for patch in patches} == {(32, 32)}
    left, right = patches[0][:, -1].mean(), patches[1][:, 0].mean()
    assert abs(right - left - 255 / 100 * 70 / 64) < 2, "the second patch begins where the first ends"
    assert rows[-1]["image"]["bytes"] == buffer.getvalue()


def test_what_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in ([tmp_path / "empty"], [tmp_path / "photos", "--also", tmp_path / "none"]):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
        done = run_tool("build_photographs.py", *words, "--out", tmp_path / "out.parquet")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
