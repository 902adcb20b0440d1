"""`LoadedRun`: the networks of a run folder, each loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes, CodesError
from vqvae2.data.augmentation import centre
from vqvae2.data.decoding import load_image
from vqvae2.data.errors import DataError
from vqvae2.data.pixels import finite, to_float
from vqvae2.files.run_folder import DecoderName, RunError
from vqvae2.files.tensor_file import stored_digest
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.train.device import best_device, present_device
from vqvae2.train.folder import load_autoencoder, load_prior, sharp_autoencoder
from vqvae2.train.stored_run import StoredRun


class LoadedRun(StoredRun):
    """The part of `vqvae2.Run` that holds the networks and turns images into codes and back.

    Args:
        folder: RUN.
        device: where the models go; None chooses the accelerator if there is one.

    Attributes:
        device: where the models are; the other attributes are those of `StoredRun`.

    Raises:
        RunError: `folder` is no run folder, or was made by a newer version.
        UserError: no such device on this machine.
    """

    def __init__(self, folder: str | Path, device: torch.device | str | None = None) -> None:
        super().__init__(folder)
        self.device = best_device() if device is None else present_device(device)
        self._loaded: dict[str, str] = {}  # by stage, the digest of the weights that were loaded

    def __repr__(self) -> str:
        """Its folder, what is drawn, and what is trained."""
        grids = " ".join(f"{height}x{width}" for height, width in self.config.geometry.grids)
        shape = [self.config.data.channels, *self.config.data.shape]
        done = [name for name, is_done in self.done().items() if is_done]
        return (
            f"{type(self).__name__}({str(self.folder)!r}, device={str(self.device)!r}: images {shape}, "
            f"codes {grids}, {len(self.classes)} classes, trained: {', '.join(done) or 'nothing'})"
        )

    @property
    def autoencoder(self) -> VQVAE:
        """The autoencoder with its plain decoder, in eval mode.

        Where the decoder was sharpened, `sample` and the like show other images of the same codes than
        `autoencoder.decode`: those of `decoder()`, with which `Run.decode` decodes.

        Raises:
            RunError: not trained yet.
        """
        return self._autoencoder[0]

    @cached_property
    def _autoencoder(self) -> tuple[VQVAE, str]:
        if not self.paths.autoencoder.done():
            raise RunError(f"the autoencoder of {self.folder} is not trained yet; {self._go_on()}")
        self._check_loaded("autoencoder")
        return load_autoencoder(self.paths.path, self.config, self.device)

    @property
    def codes_digest(self) -> str:
        """The digest of the autoencoder's weights, by which stored codes name the model that they belong to."""
        return self._autoencoder[1]

    def decoder(self, name: DecoderName | None = None, levels: int | None = None) -> VQVAE:
        """The autoencoder that decodes with one of the run's decoders, in eval mode; the codes are the same for both.

        Args:
            name: see `decoder_name`.
            levels: how many levels it will decode, from the coarsest; None is all. The sharpened decoder has only learned
                to decode all of them, so for fewer this is the plain one, whatever the name.

        Raises:
            RunError, UserError: as `decoder_name`; the autoencoder is not trained yet.
            FileError: the weights are damaged, or were sharpened for another autoencoder.
        """
        chosen, plain = self.decoder_name(name), self.autoencoder
        return self._sharp if chosen == "sharp" and levels in (None, plain.config.levels) else plain

    @cached_property
    def _sharp(self) -> VQVAE:
        self._check_loaded("sharpen")
        return sharp_autoencoder(self.paths.path, self.config, self.device)

    @cached_property
    def prior(self) -> HierarchicalPrior:
        """The priors of all levels, in eval mode.

        Raises:
            RunError: not trained yet.
        """
        for level in range(self.config.autoencoder.levels):
            if not self.paths.prior(level).done():
                more = (
                    () if self.config.train_prior[level].steps else ("--set", f"train_prior.{level}.steps=N")
                )
                raise RunError(
                    f"the prior of level {level} of {self.folder} is not trained yet; {self._go_on(*more)}"
                )
        self._check_loaded(*(f"prior level {level}" for level in range(self.config.autoencoder.levels)))
        digest = self._autoencoder[1] if self.paths.autoencoder.done() else None
        return load_prior(self.paths.path, self.config, self.device, autoencoder=digest)

    def digests(self) -> dict[str, str]:
        """As `StoredRun.digests`.

        Raises:
            RunError: weights that were loaded here are no longer those in the folder.
        """
        self._check_loaded()
        return super().digests()

    def figures(self, level: int | Literal["sharpen"] | None = None) -> dict[str, Any]:
        """As `StoredRun.figures`.

        Raises:
            RunError: no such level, or as `digests`.
            FileError: the weights are damaged.
        """
        self._check_loaded()
        return super().figures(level)

    def _check_loaded(self, *names: str) -> None:
        """Check that what was loaded is still in the folder, and remember the stages that are loaded now.

        Raises:
            RunError: a stage was trained further, or made anew.
            FileError: weights are missing or damaged.
        """
        stages = self.paths.networks(self.config.autoencoder.levels)
        now = {name: stored_digest(stages[name].model) for name in (*self._loaded, *names)}
        changed = [name for name, known in self._loaded.items() if now[name] != known]
        if changed:
            raise RunError(
                f"the {changed[0]} of {self.folder} was trained further, or anew, since its weights were loaded; load the run again"
            )
        self._loaded = now

    def load_images(self, files: Sequence[str | Path | bytes]) -> Tensor:
        """Image files as the run sees them, resized and cut to the centre: [B, C, H, W] in [-1, 1], on the CPU.

        Args:
            files: paths, or the encoded bytes of files.

        Raises:
            DataError: a file that cannot be used; no file.
        """
        if isinstance(files, (str, bytes, Path)):
            files = [files]
        if not files:
            raise DataError("expected at least one image file")
        data = self.config.data
        pixels = np.stack([load_image(file, data) for file in files])
        return to_float(torch.from_numpy(centre(pixels, data.shape)))

    def encode(self, images: Tensor) -> Codes:
        """The codes of images, on the run's device; all at once, so that B is limited by memory.

        Args:
            images: [B, C, H, W] in [-1, 1], of any size that the strides divide, on any device (of files, `load_images`).

        Raises:
            RunError: not trained yet.
            ConfigError, DataError: no finite floating-point numbers in [-1, 1], or images of another shape.
        """
        return self.autoencoder.encode(finite(images).to(self.device))

    def decode(self, codes: Codes, levels: int | None = None, decoder: DecoderName | None = None) -> Tensor:
        """The images [B, C, H, W] in [-1, 1] of codes, on the run's device.

        Args:
            codes: of all levels, on any device.
            levels: use only this many levels, from the coarsest; None uses all.
            decoder: see `decoder`; None is the one with which `sample` decodes.

        Raises:
            RunError: not trained yet.
            CodesError, UserError: no `Codes`, or of other levels or out of range; `levels` out of range; no such decoder.
        """
        if not isinstance(codes, Codes):
            raise CodesError(f"expected Codes, such as Codes((coarse, fine)), found {type(codes).__name__}")
        return self.decoder(decoder, levels).decode(codes, levels)
