"""Volumes and files of several frames: which images they hold, in which order and direction, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_helpers import config, dicom, opened

from vqvae2.data import deep, medical
from vqvae2.data.decoding import image_size, load_image
from vqvae2.data.deep import to_values
from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.folder_files import list_folder
from vqvae2.data.frames import file_of, frames_of, plain_stem, split_frame
from vqvae2.data.holdout import split_images
from vqvae2.data.label_files import labels_of
from vqvae2.data.pixels import to_float

RANGE = (-1024, 3071)
OPTIONS = config(size=[6, 5], channels=1, range=RANGE)


def body(x: int = 5, y: int = 6, z: int = 7) -> Any:
    """A volume whose values tell the place, in the directions right, front and head: value = 100 x + 10 y + z."""
    grids = np.meshgrid(np.arange(x), np.arange(y), np.arange(z), indexing="ij")
    return (100 * grids[0] + 10 * grids[1] + grids[2]).astype(np.int16)


def nifti(path: Path, values: Any, axes: str = "RAS", scaling: tuple[float, float] | None = None) -> Path:
    """Write a volume, given in the directions right, front and head, as it is stored with other axes."""
    nibabel = pytest.importorskip("nibabel")
    from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    stored = apply_orientation(values, turn)
    image = nibabel.Nifti1Image(stored, inv_ornt_aff(turn, values.shape))
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
    nibabel.save(image, path)
    return path


def read(path: Path, options: Any = OPTIONS) -> Any:
    """The values of an image [H, W], back in their range."""
    image = to_float(torch.from_numpy(load_image(path, options)[None]))[0]
    return to_values(image, options)[..., 0]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAS", "PIR", "ASL", "SRA", "IPL"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_slices_lie_the_same_however_they_are_stored(axes: str, ending: str, tmp_path: Path) -> None:
    """Number z from the feet, rows from the front to the back, columns from the right to the left."""
    file = nifti(tmp_path / f"scan{ending}", body(), axes)
    images = frames_of(file)
    assert [image.name for image in images] == [f"scan{ending}#{number}" for number in range(7)]
    for number, image in enumerate(images):
        assert np.array_equal(read(image), body()[::-1, ::-1, number].T)
        assert image_size(image) == (6, 5)


def test_points_in_time_follow_each_other(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    series = np.stack([body(), body() + 500, body() + 1000], -1)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "a.nii")
    images = frames_of(tmp_path / "a.nii")
    assert len(images) == 21
    assert np.array_equal(read(images[7 + 2]), (body() + 500)[::-1, ::-1, 2].T)


def test_values_are_rescaled(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii.gz", body(), scaling=(2.0, -1000.0))
    assert np.array_equal(read(frames_of(file)[3]), 2 * body()[::-1, ::-1, 3].T - 1000)


def test_a_single_slice_keeps_the_name_of_its_file(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", body(z=1))
    assert frames_of(file) == [file]
    assert np.array_equal(read(file), body(z=1)[::-1, ::-1, 0].T)


def test_nifti_2_and_content_without_a_file(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti2Image(body(), np.eye(4)), tmp_path / "a.nii")
    assert np.array_equal(read(frames_of(tmp_path / "a.nii")[2]), body()[::-1, ::-1, 2].T)
    nibabel.save(nibabel.Nifti2Image(body(z=1), np.eye(4)), tmp_path / "b.nii.gz")
    whole = load_image((tmp_path / "b.nii.gz").read_bytes(), OPTIONS)
    assert np.array_equal(whole, load_image(tmp_path / "b.nii.gz", OPTIONS))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (7, r"no such image: the file has 7 slices, #0 to #6"),
        (None, r"7 slices in one file: name one of them, such as FILE#3"),
    ],
)
def test_which_slice_is_meant_must_be_clear(number: int | None, message: str, tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", body())
    with pytest.raises(ImageError, match=message):
        read(file if number is None else file.with_name(f"a.nii#{number}"))


def test_volumes_that_are_too_large_are_refused(tmp_path: Path) -> None:
    """By their header, before they are unpacked: 5 GB of zeros are a small file."""
    file = nifti(tmp_path / "a.nii", body())
    head = bytearray(file.read_bytes())
    head[42:48] = np.array([20_000, 20_000, 7], "<i2").tobytes()
    packed = tmp_path / "bomb.nii.gz"
    packed.write_bytes(gzip.compress(bytes(head)))
    with pytest.raises(ImageError, match=r"a volume of 5600 MB, more than max_memory = 1024"):
        read(packed.with_name("bomb.nii.gz#0"))
    with pytest.raises(ImageError, match=r"5x6 pixels, more than max_pixels = 20"):
        read(frames_of(file)[0], OPTIONS.model_copy(update={"max_pixels": 20}))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_volumes_that_were_cut_off_are_skipped_with_one_reason(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        nifti(tmp_path / "in" / f"{name}{ending}", body())
    broken = tmp_path / "in" / f"b{ending}"
    whole = gzip.decompress(broken.read_bytes()) if ending.endswith("gz") else broken.read_bytes()
    cut = whole[:400]
    broken.write_bytes(gzip.compress(cut) if ending.endswith("gz") else cut)
    says: list[str] = []
    images = opened(tmp_path / "in", tmp_path / "run", says, size=[6, 5], channels=1, range=RANGE)
    assert len(images) == 14
    (line,) = [text for text in says if "skipped" in text]
    assert f"skipped 7 that cannot be used (b{ending}#0: broken: it ends after 400 of 772 bytes)" in line


@pytest.mark.parametrize("seed", range(4))
def test_damaged_volumes_are_errors_or_images(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    whole = nifti(tmp_path / "a.nii", body()).read_bytes()
    for number in range(40):
        data = bytearray(whole[: rng.integers(300, len(whole) + 1)])
        for position in rng.integers(0, min(len(data), 348), 3):
            data[position] = rng.integers(256)
        file = tmp_path / f"{number}.nii"
        file.write_bytes(bytes(data) if number % 2 else gzip.compress(bytes(data)))
        for image in frames_of(file)[:3]:
            try:
                assert load_image(image, OPTIONS).shape == (6, 5, 1)
            except ImageError:
                continue


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((5, 6, 1), np.complex64), "expected real numbers"),
        (np.full((5, 6, 1), np.nan), "infinite or no numbers"),
        (np.zeros((5, 6, 2, 1, 3)), r"expected a volume of 2 to 4 dimensions, found \[5, 6, 2, 1, 3\]"),
    ],
)
def test_volumes_that_hold_no_images(values: Any, message: str, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ImageError, match=message):
        read(tmp_path / "a.nii")


def test_a_range_is_needed(tmp_path: Path) -> None:
    file = nifti(tmp_path / "a.nii", body())
    with pytest.raises(ImageError, match=r"read with data\.range set"):
        load_image(frames_of(file)[0], config())


# --- DICOM ---


FRAMES = (np.arange(4 * 6 * 5).reshape(4, 6, 5) * 30).astype(np.uint16)


def test_frames_in_their_order(tmp_path: Path) -> None:
    file = dicom(tmp_path / "a.dcm", FRAMES, RescaleSlope=1, RescaleIntercept=-1024)
    images = frames_of(file)
    assert [image.name for image in images] == [f"a.dcm#{number}" for number in range(4)]
    for image, frame in zip(images, FRAMES, strict=True):
        assert np.array_equal(read(image), frame.astype(int) - 1024)
        assert image_size(image) == (6, 5)
    with pytest.raises(ImageError, match=r"4 frames in one file: name one of them, such as FILE#2"):
        read(file)
    with pytest.raises(ImageError, match=r"the file has 4 frames, #0 to #3"):
        read(tmp_path / "a.dcm#4")


def test_each_frame_may_have_its_own_rescaling(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(slope: float, intercept: float) -> Dataset:
        rescaling, outer = Dataset(), Dataset()
        rescaling.RescaleSlope, rescaling.RescaleIntercept = slope, intercept
        outer.PixelValueTransformationSequence = Sequence([rescaling])
        return outer

    own = Sequence([group(1, -number) for number in range(4)])
    file = dicom(tmp_path / "a.dcm", FRAMES // 2, PerFrameFunctionalGroupsSequence=own)
    assert np.array_equal(read(frames_of(file)[3]), FRAMES[3].astype(int) // 2 - 3)
    shared = Sequence([group(2, -1000)])
    file = dicom(tmp_path / "b.dcm", FRAMES // 2, SharedFunctionalGroupsSequence=shared)
    assert np.array_equal(read(frames_of(file)[1]), FRAMES[1].astype(int) // 2 * 2 - 1000)


# --- names, folders, splits, labels ---


def test_one_rule_of_names(tmp_path: Path) -> None:
    assert split_frame(tmp_path / "a.nii.gz#12") == (tmp_path / "a.nii.gz", 12)
    assert split_frame(tmp_path / "a.nii.gz") == (tmp_path / "a.nii.gz", None)
    (tmp_path / "a#1").touch()
    assert split_frame(tmp_path / "a#1") == (tmp_path / "a#1", None), "a file of that name is meant"
    assert [file_of(name) for name in ("x/a.nii#3", "a.png", "a#b")] == ["x/a.nii", "a.png", "a#b"]
    stems = {
        "a.b.nii.gz#12": "a.b-12",
        "a.nii": "a",
        "A.NII.GZ": "A",
        "a.dcm#0": "a-0",
        "a.b.png": "a.b",
        "a": "a",
    }
    assert {name: plain_stem(tmp_path / name) for name in stems} == stems


def test_a_folder_holds_the_images_of_its_files(tmp_path: Path) -> None:
    nifti(tmp_path / "b.nii.gz", body(z=11))
    dicom(tmp_path / "a", FRAMES)
    nifti(tmp_path / "c.nii", body(z=1))
    (tmp_path / "d.gz").write_bytes(gzip.compress(b"text"))
    found = list_folder(tmp_path)
    names = [found.name(image) for image in found.images]
    assert names == [*(f"a#{n}" for n in range(4)), *(f"b.nii.gz#{n}" for n in range(11)), "c.nii"]
    assert found.unread() == [("d.gz", "not an image")]


def test_the_images_of_a_file_are_held_out_together() -> None:
    names = [f"{scan}.nii#{number}" for scan in "abcdefghijklmnopqrst" for number in range(9)]
    train, heldout = split_images(names, None, None, 0.1)
    files = [{file_of(names[index]) for index in side} for side in (train, heldout)]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 20
    train, heldout = split_images(names[:9], None, None, 0.1)
    assert len(train)
    assert len(heldout), "of one file alone, single images are held out"


def test_a_label_of_a_file_is_that_of_its_images(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(
        "file_name,label,split\nx/a.nii.gz,ill,train\nb,well,test\nc.nii#1,ill,test\n"
    )
    names = ["x/a.nii.gz#0", "x/a.nii.gz#1", "b.nii.gz#0", "b.nii.gz#1", "c.nii#0", "c.nii#1"]
    found = labels_of(tmp_path / "labels.csv", names, config(), tmp_path)
    assert found.labels == ["ill", "ill", "well", "well", None, "ill"]
    assert found.splits == ["train", "train", "test", "test", None, "test"]


# --- without the extra ---


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = nifti(tmp_path / "a.nii.gz", body())
    for module in (deep, medical):
        monkeypatch.setattr(module, "optional", lambda name: None)
    assert frames_of(file) == [file]
    with pytest.raises(
        DataError, match=r"NIfTI files need the extra medical: pip install 'vqvae2\[medical\]'"
    ):
        read(file)
    with pytest.raises(DataError, match=r"DICOM files need the extra medical"):
        load_image(bytes(128) + b"DICM" + bytes(100), OPTIONS)
