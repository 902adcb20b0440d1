"""The settings of the images: how they are read, decoded, split and augmented."""

from __future__ import annotations

import math
import os
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vqvae2.config.base import Settings

_LARGEST = 8192  # px


def at_home(path: str) -> str:
    """A path with the home folder instead of a `~` at its beginning; the home of nobody stays as it is written."""
    return os.path.expanduser(path)  # noqa: PTH111 - that of pathlib raises for the home of nobody


class DataConfig(Settings):
    """How images are read, decoded, split and augmented."""

    size: int | tuple[int, int] = Field(
        64, description="image height and width in pixels after resizing, as one number or as [height, width]"
    )
    fit: Literal["crop", "pad"] = Field(
        "crop",
        description="images of another shape: crop = the largest part of that shape in the centre; pad = the whole image "
        "between bars of the background colour",
    )
    channels: int = Field(
        3,
        ge=1,
        le=16,
        description="channels of the images: 1 = grey, 3 = RGB, 4 = RGB and alpha; with `range` any number up to 16",
    )
    range: Literal["dtype", "percentiles"] | tuple[float, float] | None = Field(
        None,
        description="values that become black and white, for images of more than 8 bits, as [low, high]; dtype = the whole "
        "range of their type (floating point: 0 to 1), percentiles = 0.1 and 99.9 % of the values of training images "
        "(default: 8 bits)",
    )
    background: str = Field(
        "white",
        description="colour behind transparent pixels, a name or #rrggbb; not used with 4 channels, which keep alpha",
    )
    crop: Literal["center", "random"] = Field(
        "center",
        description="which part of a resized image is used: its centre, or in training a random one",
    )
    scale: float = Field(
        1.0,
        ge=1.0,
        le=4.0,
        description="images are resized to size x scale; above 1 a random crop has a margin to choose from",
    )
    flip: bool = Field(True, description="mirror training images left to right with probability 1/2")
    shift: int = Field(
        0,
        ge=0,
        le=64,
        description="shift training images by up to this many pixels in each direction; the edge pixels are repeated",
    )
    holdout: float = Field(
        0.05, gt=0, lt=1, description="share of the images held out when the data names no test split"
    )
    split: str | None = Field(
        None,
        description="read only this split of the data, and hold out a share of it (default: its training split, with its "
        "validation or test split held out)",
    )
    streaming: bool = Field(
        False, description="read a data set of the Hub as a stream, without keeping its files"
    )
    limit: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="use at most this many images, chosen by the seed; of a stream the first ones",
    )
    shuffle_buffer: int = Field(
        0,
        ge=0,
        le=10**12,
        description="0 shuffles all training images together; a number N reads slow or distant storage in long stretches: each "
        "epoch shuffles blocks of N/8 images that are stored one after the other and cuts their sequence into up to 64 lanes, in "
        "each of which N images at a time are mixed; a batch takes as many images from every lane, and none are kept in memory",
    )
    max_pixels: int = Field(
        178_956_970,
        ge=1,
        le=2**40,
        description="an image of more pixels is skipped, because decoding it could fill the memory",
    )
    max_memory: int = Field(
        1024,
        ge=1,
        le=2**20,
        description="an image whose decoding would take more than this many MB (1e6 bytes) is skipped",
    )
    workers: int = Field(
        -1,
        ge=-1,
        le=1024,
        description="processes that decode images; -1 = one per available processor core, 0 = none besides the main process",
    )
    cache_gb: float = Field(
        8.0,
        ge=0,
        le=1e6,
        description="decoded images are kept in the run folder if they fit in this many GB (1e9 bytes), and are decoded anew "
        "in every epoch otherwise",
    )
    image_column: str | None = Field(
        None, description="column of a table that holds the images (default: chosen by its type and name)"
    )
    image_root: str | None = Field(
        None,
        description="folder to which the paths of images in a table are relative, and which they may not leave "
        "(default: the folder of the table's file)",
    )
    labels: str | None = Field(
        None,
        description="file with the classes of the images of a folder: CSV, JSON or JSON lines (default: metadata.csv, "
        "metadata.jsonl or metadata.json in the folder)",
    )
    label_column: str | None = Field(
        None,
        description="column of a table or of a file of labels that holds the classes (default: label, labels, cls, class or fine_label); none = no "
        "classes, from folders neither",
    )

    @field_validator("size", mode="before")
    @classmethod
    def _shape(cls, value: Any) -> Any:
        """Accept `64`, `[64, 96]`, and `64x96` as text; equal sides are one number."""
        given = value
        if isinstance(value, str):
            value = [
                int(part) if part.strip().isdecimal() else part for part in re.split("[x,]", value.lower())
            ]
        sides = list(value) if isinstance(value, list | tuple) else [value]
        if len(sides) == 1:
            sides *= 2
        whole = all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST for side in sides
        )
        if len(sides) != 2 or not whole:
            raise ValueError(
                f"expected an integer from 1 to {_LARGEST}, or two as [height, width], found {given!r}"
            )
        return sides[0] if sides[0] == sides[1] else tuple(sides)

    @field_validator("labels", "image_root")
    @classmethod
    def _whole(cls, value: str | None) -> str | None:
        return value and at_home(value)

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if isinstance(self.range, tuple) and not (
            self.range[0] < self.range[1] and all(map(math.isfinite, self.range))
        ):
            raise ValueError(f"range: expected [low, high] with low < high, found {list(self.range)}")
        if self.range is None and self.channels not in (1, 3, 4):
            raise ValueError(
                f"channels: expected 1, 3 or 4, found {self.channels}; other numbers need images with `range` set"
            )
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def area(self) -> int:
        """Pixels of an image."""
        return self.shape[0] * self.shape[1]

    @property
    def shape_text(self) -> str:
        """The shape in words: `64`, or `64x96` with the height first."""
        return str(self.size) if isinstance(self.size, int) else "x".join(map(str, self.size))
