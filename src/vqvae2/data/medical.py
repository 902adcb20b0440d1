"""Medical images: DICOM files of one or several frames, and NIfTI volumes slice by slice (both with the extra `medical`).

A NIfTI volume is cut into axial slices, from the feet to the head, however it is stored. Their rows go from the front of the
body to the back and their columns from the patient's right to the left, as in DICOM. Of a series in time, all slices of the first
point come before those of the second. Voxels become pixels, whatever the distance between them. The frames of a DICOM file
come as they are stored.

Shapes: X Y Z the axes of a volume as it is stored, T points in time, H W a slice.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from vqvae2.data.errors import DataError, ImageError
from vqvae2.data.formats import check_pixels, optional
from vqvae2.files.atomic import reason

NIFTI_SUFFIXES = (".nii.gz", ".nii")
_GZIP = b"\x1f\x8b"
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # of single files, by the size of their header
_MOST_FRAMES = 1_000_000


def is_dicom(head: bytes) -> bool:
    """Whether a file with these first bytes is a DICOM file."""
    return head[128:132] == b"DICM"


def is_nifti(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is a NIfTI volume, compressed or not."""
    if head.startswith(_GZIP):
        try:
            head = _stream(head).read1(348)  # type: ignore[attr-defined]
        except (OSError, EOFError):
            return False
    return any(
        head[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")) and head[place : place + 4] == magic
        for size, (place, magic) in _MAGIC.items()
    )


def count_frames(file: Path) -> int:
    """The number of images in a file; 1 where it cannot be told, because a library is missing or the file is damaged."""
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
            if is_dicom(head) and (library := optional("pydicom")) is not None:
                opened.seek(0)
                count = _dicom_frames(library.dcmread(opened, True, True, True, ["NumberOfFrames"]))
            elif is_nifti(head) and optional("nibabel") is not None:
                opened.seek(0)
                count = _Geometry.read(_stream(opened, head)).frames
            else:
                return 1
    except Exception:  # whatever the matter is, reading the image will say it
        return 1
    return count if 1 <= count <= _MOST_FRAMES else 1


def read_frame(
    source: bytes | Path, number: int | None, most_pixels: int, most_megabytes: int
) -> NDArray[Any]:
    """The values of one image of a file, [H, W] or [H, W, C], in the units of its rescaling, such as Hounsfield units.

    Args:
        source: the content of a file, or the file.
        number: which image; None is the only one.
        most_pixels, most_megabytes: a larger image, or a larger NIfTI volume, is refused.

    Raises:
        ImageError: damaged, too large, or there is no such image.
        DataError: the extra is missing.
    """
    if isinstance(source, bytes):
        head = source[:512]
    else:
        with source.open("rb") as opened:
            head = opened.read(512)
    if is_dicom(head):
        return _read_dicom(source, number, most_pixels)
    if not is_nifti(head):
        raise ImageError("neither a NIfTI volume nor a DICOM file")
    if optional("nibabel") is None:
        raise DataError("NIfTI files need the extra medical: pip install 'vqvae2[medical]'")
    volume = _open(source, most_megabytes)
    number = _only(volume.geometry.frames, "slices") if number is None else number
    check_pixels(volume.geometry.size, most_pixels)
    return volume.slice(number)


def frame_size(file: Path, number: int | None) -> tuple[int, int]:
    """Height and width of one image of a file.

    Raises:
        ImageError, DataError: as `read_frame`.
    """
    with file.open("rb") as opened:
        head = opened.read(512)
        if is_nifti(head) and optional("nibabel") is not None:
            opened.seek(0)
            return _Geometry.read(_stream(opened, head)).size
    height, width = read_frame(file, number, 2**40, 2**20).shape[:2]
    return height, width


def _only(count: int, what: str) -> int:
    if count > 1:
        raise ImageError(
            f"{count} {what} in one file: name one of them, such as FILE#{count // 2}; of a folder all are read"
        )
    return 0


def _check_number(number: int, count: int, what: str) -> None:
    if number >= count:
        raise ImageError(f"no such image: the file has {count} {what}, #0 to #{count - 1}")


# --- DICOM ---


def _dicom_frames(file: Any) -> int:
    return int(file.get("NumberOfFrames", 1) or 1)


def _read_dicom(source: bytes | Path, number: int | None, most_pixels: int) -> NDArray[Any]:
    library = optional("pydicom")
    if library is None:
        raise DataError("DICOM files need the extra medical: pip install 'vqvae2[medical]'")
    pixels = importlib.import_module("pydicom.pixels")
    stream = BytesIO(source) if isinstance(source, bytes) else source
    try:
        file = library.dcmread(stream, stop_before_pixels=True)
        count = _dicom_frames(file)
        number = _only(count, "frames") if number is None else number
        _check_number(number, count, "frames")
        check_pixels((int(file.Rows), int(file.Columns)), most_pixels)
        values = np.asarray(pixels.pixel_array(stream, index=number))
        values = np.asarray(pixels.apply_rescale(values, _rescaling(file, number)))
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds of exceptions for a damaged file
        if getattr(error, "errno", None) is not None:
            raise
        raise ImageError(f"broken: {reason(error)}") from error
    if file.get("PhotometricInterpretation") == "MONOCHROME1":  # the lowest value is white
        values = values.max() + values.min() - values
    return values


def _rescaling(file: Any, number: int) -> Any:
    """Where the rescaling of a frame stands: with the frame, with all frames, or in the file itself."""
    own = file.get("PerFrameFunctionalGroupsSequence") or ()
    groups = [*own[number : number + 1], *(file.get("SharedFunctionalGroupsSequence") or ())[:1]]
    found = (group.get("PixelValueTransformationSequence") for group in groups)
    return next((sequence[0] for sequence in found if sequence), file)


# --- NIfTI ---


def _stream(source: bytes | BinaryIO, head: bytes | None = None) -> BinaryIO:
    """The bytes of a volume, unpacked if they are compressed."""
    head = source[:2] if isinstance(source, bytes) else head or b""
    opened = BytesIO(source) if isinstance(source, bytes) else source
    return cast(BinaryIO, gzip.GzipFile(fileobj=opened)) if head.startswith(_GZIP) else opened


@dataclass(frozen=True)
class _Geometry:
    """What the header of a volume says.

    Attributes:
        shape: X, Y, Z, T.
        axes: which of the stored axes go to the right, to the front and to the head.
        turned: whether each of these is stored the other way round.
        dtype: of the stored values.
        offset: bytes before them.
        scaling: factor and summand of the stored values; (1, 0) keeps their type.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    turned: tuple[bool, ...]
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float, float]

    @classmethod
    def read(cls, stream: BinaryIO) -> _Geometry:
        """The geometry, from the first bytes of a volume."""
        library = importlib.import_module("nibabel")
        block = stream.read(348)
        kind = library.Nifti1Header
        if block[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c"):
            block, kind = block + stream.read(192), library.Nifti2Header
        with importlib.import_module("nibabel.imageglobals").LoggingOutputSuppressor():
            header = kind(block)
        shape = tuple(int(side) for side in header.get_data_shape())
        if len(shape) < 2 or min(shape) < 1 or math.prod(shape[4:]) != 1:
            raise ImageError(f"expected a volume of 2 to 4 dimensions, found {list(shape)}")
        placed = library.io_orientation(header.get_best_affine())
        if np.isnan(placed).any():  # no position in space: taken as it is stored
            placed = np.array([(0, 1), (1, 1), (2, 1)])
        order = np.argsort(placed[:, 0]).tolist()
        slope, summand = header.get_slope_inter()
        return cls(
            (*shape, 1, 1)[:4],
            tuple(order),
            tuple(bool(placed[axis, 1] < 0) for axis in order),
            header.get_data_dtype(),
            max(len(block) + 4, header.get_data_offset()),
            (1.0, 0.0) if slope is None else (float(slope), float(summand or 0)),
        )

    @property
    def frames(self) -> int:
        """How many slices there are, at all points in time."""
        return self.shape[self.axes[2]] * self.shape[3]

    @property
    def size(self) -> tuple[int, int]:
        """H and W of a slice."""
        return self.shape[self.axes[1]], self.shape[self.axes[0]]

    @property
    def bytes(self) -> int:
        """Of the whole volume."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Volume:
    """A volume in memory, as it is stored."""

    geometry: _Geometry
    data: bytes

    def slice(self, number: int) -> NDArray[Any]:
        """A slice [H, W]."""
        its = self.geometry
        _check_number(number, its.frames, "slices")
        stored = np.ndarray(its.shape, its.dtype, self.data, its.offset, order="F")
        time, height = divmod(number, its.shape[its.axes[2]])
        placed = stored[..., time].transpose(its.axes)
        placed = placed[tuple(np.s_[::-1] if turned else np.s_[:] for turned in its.turned)]
        values: NDArray[Any] = placed[::-1, ::-1, height].T  # columns to the left, rows to the back
        if its.scaling != (1.0, 0.0) and values.dtype.kind in "buif":
            values = values * np.float64(its.scaling[0]) + its.scaling[1]
        return values


def _open(source: bytes | Path, most_megabytes: int) -> _Volume:
    """A volume. The file that was opened last is kept in memory, because its slices are usually read one after the other.

    Raises:
        ImageError: damaged or too large.
    """
    if isinstance(source, bytes):
        found = _read_volume(_stream(source), most_megabytes)
    else:
        state = source.stat()
        found = _kept(source, state.st_mtime_ns, state.st_size, most_megabytes)
    if isinstance(found, str):
        raise ImageError(found)
    return found


@functools.lru_cache(maxsize=1)
def _kept(file: Path, changed: int, size: int, most_megabytes: int) -> _Volume | str:
    """`_read_volume` of a file; `changed` and `size` tell another content."""
    with file.open("rb") as opened:
        head = opened.read(2)
        opened.seek(0)
        return _read_volume(_stream(opened, head), most_megabytes)


def _read_volume(stream: BinaryIO, most_megabytes: int) -> _Volume | str:
    """A volume, or the reason why it cannot be used."""
    try:
        geometry = _Geometry.read(stream)
        if geometry.bytes > most_megabytes * 1e6:
            return f"a volume of {geometry.bytes / 1e6:.0f} MB, more than max_memory = {most_megabytes} (MB)"
        stream.seek(0)
        data = stream.read(geometry.bytes)
        if len(data) < geometry.bytes:
            return f"broken: it ends after {len(data)} of {geometry.bytes} bytes"
        return _Volume(geometry, data)
    except ImageError as error:
        return str(error)
    except MemoryError:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds of exceptions for a damaged file
        if getattr(error, "errno", None) is not None:
            raise
        return f"broken: {reason(error)}"
