"""Images that lie on their side: the rotation that a camera noted in the EXIF data, for pixels and for a size in a header."""

from __future__ import annotations

from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # tag of the EXIF data
_TURNED = (5, 6, 7, 8)  # its values for an image that lies on its side
_WIDTH, _HEIGHT = 256, 257  # tags of a TIFF


def upright(image: Image.Image) -> Image.Image:
    """The image as the camera was held; decoded if it was not yet."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data does not make the pixels unusable
        return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width in pixels that `upright` gives an image, without decoding it."""
    width, height = image.size
    if image.format == "TIFF":  # whose `size` some versions of Pillow have turned already
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    try:
        exif = Image.Image.getexif(image)  # that of a PNG would decode it
        return (width, height) if exif.get(_ORIENTATION) in _TURNED else (height, width)
    except MemoryError:
        raise
    except Exception:
        return height, width
