"""What a run folder holds: the one place where its paths are spelled.

    RUN/config.yaml        the resolved settings, and a record: version, command, source, fingerprint, classes
    RUN/data/              decoded images, skipped.txt
    RUN/autoencoder/       stage 1: model.safetensors, config.json, metrics.jsonl, pictures/; checkpoints/ while it is trained;
                           then state.safetensors, and longer/ while it is trained further
    RUN/codes/             the code store: manifest.json, one array per level, labels, the split
    RUN/sharpen/           as autoencoder/; its model.safetensors holds the sharpened decoder alone
    RUN/prior/level-0/ ... as autoencoder/, and samples.png
    RUN/critic/            critic.json and the classifier that `sample --critic` chooses by
    RUN/samples/           sheets of the demo
    RUN/report/            the pages of `train`, `demo` and `evaluate`, with their figures as JSON

A stage is done when its model.safetensors (for the codes, manifest.json) exists, because that is written last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqvae2.errors import UserError

DecoderName = Literal["plain", "sharp"]
"""Which decoder of a run makes images of codes: the one that was trained with the codes, or the sharpened one."""


class RunError(UserError):
    """A run folder that cannot be used as asked."""


def run_path(folder: str | Path) -> Path:
    """The path of a run folder.

    Raises:
        RunError: an empty text, which `Path` would take for the current folder.
    """
    if not str(folder):
        raise RunError("expected a run folder, found an empty text")
    return Path(folder)


@dataclass(frozen=True)
class StageFolder:
    """The folder of one trained network: the autoencoder, the sharpened decoder, or the prior of one level.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def model(self) -> Path:
        """The weights that are kept; written when the training is done."""
        return self.path / "model.safetensors"

    @property
    def record(self) -> Path:
        """How the training ended, and the configuration, as JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """The log of the training, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def pictures(self) -> Path:
        """The folder of the sheets that are drawn during the training."""
        return self.path / "pictures"

    @property
    def checkpoints(self) -> Path:
        """The folder of the training's state; removed when the training is done, and its last state kept as `state`."""
        return self.path / "checkpoints"

    @property
    def checkpoint(self) -> Path:
        """The last saved state of a training that is not done."""
        return self.checkpoints / "last.safetensors"

    @property
    def previous(self) -> Path:
        """The state before it, in case that one is damaged; not on every file system."""
        return self.checkpoints / "previous.safetensors"

    @property
    def state(self) -> Path:
        """The state as the training ended, from which it can be trained further; it may be deleted."""
        return self.path / "state.safetensors"

    @property
    def longer(self) -> StageFolder:
        """The folder in which a finished training is trained further."""
        return StageFolder(self.path / "longer")

    @property
    def samples(self) -> Path:
        """Samples of the levels up to this one, drawn when its prior is trained."""
        return self.path / "samples.png"

    def done(self) -> bool:
        """Whether the training is done."""
        return self.model.exists()

    def begun(self) -> bool:
        """Whether there are weights, final or not."""
        return self.model.exists() or self.checkpoint.exists()


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run folder; nothing is read or created.

    Attributes:
        path: RUN.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings and the record. A folder without this file is no run folder."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """The folder of decoded images."""
        return self.path / "data"

    @property
    def autoencoder(self) -> StageFolder:
        """Stage 1."""
        return StageFolder(self.path / "autoencoder")

    @property
    def codes(self) -> Path:
        """The folder of the code store."""
        return self.path / "codes"

    @property
    def manifest(self) -> Path:
        """The code store's description; written when it is complete."""
        return self.codes / "manifest.json"

    @property
    def sharpen(self) -> StageFolder:
        """The sharpened decoder."""
        return StageFolder(self.path / "sharpen")

    def prior(self, level: int) -> StageFolder:
        """Stage 2 of one level, 0 the coarsest."""
        return StageFolder(self.path / "prior" / f"level-{level}")

    def stage(self, level: int | Literal["sharpen"] | None) -> StageFolder:
        """The autoencoder (None), the sharpened decoder ("sharpen") or the prior of a level."""
        if level == "sharpen":
            return self.sharpen
        return self.autoencoder if level is None else self.prior(level)

    def networks(self, levels: int) -> dict[str, StageFolder]:
        """Every stage that trains a network, in order and by name: "autoencoder", "sharpen", "prior level 0" ...

        Args:
            levels: of the autoencoder.
        """
        priors = {f"prior level {level}": self.prior(level) for level in range(levels)}
        return {"autoencoder": self.autoencoder, "sharpen": self.sharpen, **priors}

    @property
    def critic(self) -> Path:
        """What the critic is and how good it is, as JSON; its classifier is beside it. Written last."""
        return self.path / "critic" / "critic.json"

    @property
    def sheets(self) -> Path:
        """The folder of the pictures that the demo draws."""
        return self.path / "samples"

    @property
    def report(self) -> Path:
        """The folder of reports."""
        return self.path / "report"

    def exists(self) -> bool:
        """Whether this is a run folder."""
        return self.config.is_file()


def refuse_links(folder: Path, levels: int) -> None:
    """Check that no folder into which a command may write is a link that leads out of the run folder.

    Args:
        folder: RUN.
        levels: of the autoencoder.

    Raises:
        RunError: one is; a run folder of a stranger could make a command write anywhere.
    """
    paths = RunFolder(folder)
    stages = [own for stage in paths.networks(levels).values() for own in (stage, stage.longer)]
    written = [paths.data, paths.codes, paths.prior(0).path.parent]
    written += [place for stage in stages for place in (stage.path, stage.pictures, stage.checkpoints)]
    written += [paths.critic.parent, paths.sheets, paths.report, paths.report / "cache"]
    for place in (paths.data, paths.codes, paths.critic.parent, paths.report / "cache"):
        written += [below for below in place.glob("*") if below.is_dir()]  # parts, samples, decoded images
    for place in written:
        if leads_out(place, folder):
            raise RunError(
                f"{place} is a link to {place.resolve()}, outside of the run folder, so nothing is written there; "
                f"use a real folder, or move the whole run"
            )


def leads_out(place: Path, folder: Path) -> bool:
    """Whether a path in a run folder is a link that leads out of it."""
    return place.is_symlink() and not place.resolve().is_relative_to(folder.resolve())
