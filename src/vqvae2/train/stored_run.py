"""What a run folder says about itself without loading a network: its settings, what is trained, digests and figures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from vqvae2.data.store import open_store
from vqvae2.errors import UserError, suggested
from vqvae2.files import tensor_file
from vqvae2.files.locate import public_name
from vqvae2.files.run_folder import DecoderName, RunError, RunFolder, run_path
from vqvae2.generate.sample import proportional_labels
from vqvae2.train.folder import read_run


class StoredRun:
    """The part of `vqvae2.Run` that reads files alone.

    Args:
        folder: RUN.

    Attributes:
        folder: RUN.
        paths: the paths of what is in it.
        config: its settings.
        record: version, command, source, fingerprint, classes, class_counts.
        classes: class names, () without classes.
        sampling: how this run draws unless a call says otherwise (`sampling` of its configuration).

    Raises:
        RunError: `folder` is no run folder, or was made by a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = run_path(folder)
        # absolute, because files are read later, perhaps from another working folder
        self.paths = RunFolder(self.folder.absolute())
        self.record, self.config = read_run(self.folder)
        self.classes: tuple[str, ...] = tuple(self.record.get("classes", ()))
        self.sampling = self.config.sampling

    def decoder_name(self, name: DecoderName | None = None) -> DecoderName:
        """The decoder that is meant: "plain" or "sharp"; None is the sharpened one if it is trained, else the plain one.

        Raises:
            RunError: the sharpened decoder is asked for and not trained.
            UserError: another name.
        """
        if name not in (None, *get_args(DecoderName)):
            raise UserError(f"expected the decoder plain or sharp, found {name!r}")
        done = self.paths.sharpen.done()
        if name == "sharp" and not done:
            command = self._go_on("--set", "sharpen.steps=N", effect="sharpens it")
            raise RunError(f"the decoder of {self.folder} is not sharpened; {command}")
        return name or ("sharp" if done else "plain")

    def check_out(self, out: Path) -> None:
        """Check that images are not written among those that the run was trained on, which would then be others.

        Nothing is checked if the run was moved, or copied to another machine, where the same path may hold anything.

        Args:
            out: a folder. In the run folder, which is never data, and in one whose name begins with a dot it may be.

        Raises:
            UserError: it is in the folder of the run's images.
        """
        source = self.record.get("source")
        if not isinstance(source, str) or not os.path.isabs(source) or not os.path.isdir(source):  # noqa: PTH112, PTH117 - for any text
            return
        there, root = Path(os.path.realpath(out)), Path(os.path.realpath(source))
        seen_from_run = self.folder / (self.record.get("source_from_run") or source)
        if Path(os.path.realpath(seen_from_run)) != root:
            return
        if not there.is_relative_to(root) or there.is_relative_to(os.path.realpath(self.folder)):
            return
        if not any(part.startswith(".") for part in there.relative_to(root).parts):
            raise UserError(
                f"{out} is in {source}, whose images {self.folder} was trained on: with others among them they would no "
                "longer be the same; choose another folder"
            )

    def done(self) -> dict[str, bool]:
        """Which stages are done, by name: "autoencoder", "codes", "prior level 0" ...

        "sharpen" is among them if the configuration asks for it, or if it is done.
        """
        networks = self.paths.networks(self.config.autoencoder.levels)
        done = {name: stage.done() for name, stage in networks.items()}
        if not (self.config.sharpen.steps or done["sharpen"]):
            del done["sharpen"]
        return {"autoencoder": done.pop("autoencoder"), "codes": self.paths.manifest.exists(), **done}

    def digests(self) -> dict[str, str]:
        """The digest of the weights of each network that is trained, by the names of `done`."""
        networks = self.paths.networks(self.config.autoencoder.levels).items()
        return {name: tensor_file.stored_digest(stage.model) for name, stage in networks if stage.done()}

    def drawn_by(self, decoder: DecoderName | None = None) -> dict[str, Any]:
        """For records of samples, which networks draw them, JSON-ready.

        Args:
            decoder: see `decoder_name`.

        Returns:
            `model`: the digests of autoencoder and priors, by the names of `done`; `decoder`: its `name` and `digest`.
        """
        digests, name = self.digests(), self.decoder_name(decoder)
        sharp = digests.pop("sharpen", None)
        own = sharp if name == "sharp" else digests.get("autoencoder")
        return {"model": digests, "decoder": {"name": name, "digest": own}}

    def figures(self, level: int | Literal["sharpen"] | None = None) -> dict[str, Any]:
        """The held-out figures of the weights that were kept; {} if not trained.

        Args:
            level: None for the autoencoder, "sharpen" for the sharpened decoder, else the level of a prior.

        Raises:
            RunError: no such level.
            FileError: the weights are damaged.
        """
        if level not in (levels := [None, "sharpen", *range(self.config.autoencoder.levels)]):
            raise RunError(f"expected one of {', '.join(map(repr, levels))}, found {level!r}")
        stage = self.paths.stage(level)
        return tensor_file.stored_figures(stage.model) if stage.done() else {}

    def class_counts(self) -> list[int]:
        """How many training images each class has, or a multiple of that if only RUN/codes says it (its augmented copies).

        Raises:
            RunError: no classes, or the run does not say it, or its record of it is damaged.
            StoreError: RUN/codes is damaged.
        """
        if not self.classes:
            raise RunError(f"{self.folder} has no classes")
        counts: list[int] = self.record.get("class_counts", [])
        if not counts and self.paths.manifest.exists():
            store = open_store(self.paths.codes)
            counts = np.bincount(store.labels[store.train], minlength=len(self.classes)).tolist()
        if not counts:
            raise RunError(
                f"{self.folder} does not say how many training images each class has: its version was older, and its codes are "
                "not here"
            )
        if len(counts) != len(self.classes) or min(counts) < 0 or not 0 < sum(counts) < 2**40:
            raise RunError(
                f"{self.paths.config} is damaged: class_counts are no numbers of images of its classes"
            )
        return counts

    def labels_in_proportion(self, n: int) -> list[int]:
        """The class numbers of n samples, each class as often as among the training images (`proportional_labels`).

        Raises:
            RunError, StoreError: as `class_counts`. UserError: n is below 1.
        """
        return proportional_labels(self.class_counts(), n)

    def _go_on(self, *options: str, effect: str = "continues") -> str:
        command = suggested("train", self.record.get("source", "DATA"), "--run", self.folder, *options)
        return f"{command} {effect}"

    def _classless(self) -> str:
        return f"{self.folder} has no classes, so a critic cannot score its samples"

    def _fit_critic(self) -> str:
        source, folder = self.record.get("source", "DATA"), self.folder
        if public_name(folder) is None:
            return f"{suggested('critic', 'fit', folder, '--data', source)} fits one"
        fitting = suggested("critic", "fit", "COPY", "--data", source)
        return f"copy {folder.resolve()} to a folder of your own, COPY, for which {fitting} fits one"
