"""`Run`: a run folder as an object. It loads the models and draws, reconstructs, completes and scores images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from vqvae2.autoencoder.model import VQVAE
from vqvae2.codes import Codes
from vqvae2.config.sampling import Sampling, sampling_of
from vqvae2.data.images import open_images
from vqvae2.data.store import open_store
from vqvae2.errors import UserError
from vqvae2.evaluate.critic import Critic, fit_critic, load_critic
from vqvae2.evaluate.typicality import Typical
from vqvae2.files import tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import RunFolder
from vqvae2.generate.complete import Completed, Kept, complete, keep_coarse, keep_outside
from vqvae2.generate.reject import Chosen, Scorer, draw_best
from vqvae2.generate.sample import Drawn, draw_samples, sample_labels
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.train.folder import RunError, load_autoencoder, load_prior, read_run

_REFERENCE = 1024  # held-out images with which others are compared, at most
_HUB_FILES = ["config.yaml", "autoencoder/*", "prior/*", "README.md"]  # of a Hub repository that holds a run


def zoo() -> list[str]:
    """Names of the models shipped in the package."""
    folder = resources.files("vqvae2") / "zoo"
    models = folder.iterdir() if folder.is_dir() else ()
    return sorted(item.name for item in models if (item / "config.yaml").is_file())


def load(name: str | Path, device: torch.device | str | None = None) -> Run:
    """Open a run.

    Args:
        name: a run folder, the name of a model of the zoo, or a Hub repository `owner/name` that holds a run folder.
        device: where the models go; None chooses the accelerator if there is one.

    Raises:
        RunError: nothing of that name, or made by a newer version.
    """
    path = Path(name)
    if RunFolder(path).exists():
        return Run(path, device)
    text = str(name)
    if text in zoo():
        return Run(Path(str(resources.files("vqvae2") / "zoo" / text)), device)
    if path.exists():
        raise RunError(f"{path} is no run folder: it has no config.yaml")
    if text.count("/") == 1 and not text.startswith((".", "/")) and not path.parent.is_dir():
        try:
            return Run(Path(snapshot_download(text, allow_patterns=_HUB_FILES)), device)
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise RunError(
                f"no folder {text}, and it cannot be fetched from the Hub: {' '.join(str(error).split())[:200]}"
            ) from None
    known = ", ".join(zoo()) or "none"
    raise RunError(
        f"no run {text}: expected a run folder, a model of the package ({known}) or a Hub id owner/name"
    )


class Run:
    """A trained (or partly trained) model and its folder.

    Args:
        folder: RUN.
        device: where the models go; None chooses the accelerator if there is one.

    Attributes:
        folder: RUN.
        paths: the paths of what is in it.
        config: its settings.
        record: version, command, source, fingerprint, classes.
        classes: class names, () without classes.
        sampling: how this run draws unless a call says otherwise (`sampling` of its configuration).

    Raises:
        RunError: `folder` is no run folder, or was made by a newer version.
    """

    def __init__(self, folder: str | Path, device: torch.device | str | None = None) -> None:
        self.folder = Path(folder)
        self.paths = RunFolder(self.folder)
        self.record, self.config = read_run(self.folder)
        self.classes: tuple[str, ...] = tuple(self.record.get("classes", ()))
        self.sampling = self.config.sampling
        self.device = torch.device(device) if device is not None else _device()

    @property
    def autoencoder(self) -> VQVAE:
        """The autoencoder, in eval mode.

        Raises:
            RunError: not trained yet.
        """
        return self._autoencoder[0]

    @cached_property
    def _autoencoder(self) -> tuple[VQVAE, str]:
        if not self.paths.autoencoder.done():
            raise RunError(f"the autoencoder of {self.folder} is not trained yet; {self._go_on()}")
        return load_autoencoder(self.folder, self.config, self.device)

    @cached_property
    def prior(self) -> HierarchicalPrior:
        """The priors of all levels, in eval mode.

        Raises:
            RunError: not trained yet.
        """
        for level in range(self.config.autoencoder.levels):
            if not self.paths.prior(level).done():
                raise RunError(
                    f"the prior of level {level} of {self.folder} is not trained yet; {self._go_on()}"
                )
        return load_prior(self.folder, self.config, self.device)

    @cached_property
    def critic(self) -> Critic:
        """The classifier that `vqvae2 critic fit` fitted; it scores an image by the probability of its class.

        Raises:
            RunError: this run has no classes, or no critic is fitted.
        """
        if not self.classes:
            raise RunError(self._classless())
        if not self.paths.critic.exists():
            raise RunError(f"no critic is fitted for {self.folder}; {self._fit_critic()}")
        critic = load_critic(self.folder, self.device)
        if critic.classes != self.classes:
            raise RunError(f"the critic in {self.folder} is of other classes; {self._fit_critic()}")
        return critic

    def fit_critic(
        self,
        data: str | None = None,
        features: str = "lite0",
        weights: Path | None = None,
        model: Path | None = None,
        reporter: Reporter | None = None,
    ) -> Critic:
        """Fit a critic to this run's training images and keep it in RUN/critic.

        Args:
            data: the images that the run was trained on, if they are elsewhere now.
            features: name of the feature network, as for `evaluate.critic.fit_critic`; so are the next two.
            weights: a file with its weights, or None.
            model: a classifier of one's own as a TorchScript file, or None.
            reporter: shows the progress; None shows nothing.

        Raises:
            RunError: no classes, or these are not the images that the run was trained on.
            DataError, CriticError, FeatureError, ClassifierError: see `evaluate.critic.fit_critic`.
        """
        if not self.classes:
            raise RunError(self._classless())
        reporter = reporter or Reporter(quiet=True)
        source = self.record.get("source")
        with ExitStack() as stack:
            own = data in (None, source)  # other images must not replace the run's decoded ones
            decoded = self.paths.data if own else Path(stack.enter_context(TemporaryDirectory())) / "data"
            images = open_images(
                str(data or source), self.config.data, decoded, seed=self.config.seed, say=reporter.say
            )
            stack.callback(images.close)
            if images.fingerprint != self.record.get("fingerprint", images.fingerprint):
                raise RunError(
                    f"expected the images that {self.folder} was trained on ({source}), found others in {data or source}"
                )
            count = len(images.heldout) + (0 if model else len(images.train))
            tracker = stack.enter_context(reporter.track("critic", count, unit="images"))
            critic = fit_critic(
                self.folder, images, self.config.data, features, weights, model, self.device, tracker.update
            )
        self.__dict__.pop("critic", None)  # the cached property
        return critic

    def sample(
        self,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        **settings: Any,
    ) -> Tensor:
        """n new images [n, C, H, W] in [-1, 1], on the CPU.

        Args:
            labels: a class name or number for all, several that are repeated in turn, or None for all classes in turn.
            seed: sample i of a seed is the same whatever n and the batch size.
            sampling: temperature and the like; None takes the run's own (`run.sampling`).
            settings: temperature, top_k, top_p or guidance as keywords instead of `sampling`; they change the run's own.

        Raises:
            RunError: not trained yet.
            UserError: no such class, or an argument out of range.
        """
        own = sampling_of(sampling, settings, self.sampling)
        return torch.cat([part.images.cpu() for part in self.draw(n, labels, seed, own)])

    def draw(
        self,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        ranges: Iterable[range] | None = None,
    ) -> Iterator[Drawn]:
        """As `sample`, but batch by batch and with labels and codes.

        Args:
            ranges: the numbers of the samples to draw, each range one batch; None draws all n, in batches of
                `sampling.batch`.
        """
        classes = sample_labels(labels, n, self.classes)
        sampling = sampling or self.sampling
        return draw_samples(self.autoencoder, self.prior, n, classes, seed, sampling, ranges)

    def draw_best(
        self,
        n: int,
        fraction: float,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        scorer: Scorer | None = None,
    ) -> Iterator[Chosen]:
        """As `draw`, but n / fraction candidates are drawn and the best of each class are kept (`generate.reject`).

        Args:
            fraction: 0 < fraction <= 1; 1 keeps all.
            scorer: any function (images, labels) -> scores; None takes the run's critic.

        Raises:
            UserError: fraction out of range.
            RunError: no classes, or neither a scorer nor a critic.
        """
        classes = sample_labels(labels, n, self.classes)
        if classes is None:
            raise RunError(self._classless())
        scorer, sampling = scorer or self.critic, sampling or self.sampling
        return draw_best(self.autoencoder, self.prior, classes, seed, sampling, scorer, fraction)

    def reconstruct(self, images: Tensor, levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] through the codes and back, clipped to [-1, 1].

        Args:
            levels: use only this many levels, from the coarsest; None uses all.
        """
        codes = self.autoencoder.encode(images.to(self.device))
        return self.autoencoder.decode(codes, levels).to(images.device)

    def keep(self, image: Tensor, mask: Tensor | None = None, levels: int | None = None) -> Kept:
        """What to keep of an image when it is completed. Exactly one of `mask` and `levels` is needed.

        Args:
            image: [C, H, W] in [-1, 1].
            mask: [H, W] bool, True where the image is to be filled in; a code is redrawn if any pixel of its cell is.
            levels: keep this many levels, from the coarsest, 1 .. L - 1.

        Raises:
            UserError: both or neither; a mask of another size; levels out of range.
        """
        image = image.to(self.device)
        if mask is not None and levels is None:
            return keep_outside(self.autoencoder, image, mask.to(self.device))
        if levels is not None and mask is None:
            return keep_coarse(self.autoencoder, image, levels)
        raise UserError("expected either a mask or a number of levels to keep")

    def complete(
        self,
        kept: Kept,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        passes: int = 1,
        sampling: Sampling | None = None,
    ) -> Iterator[Completed]:
        """Complete an image n times, batch by batch; outside the mask the results have the pixels of the image itself.

        Args:
            kept: from `keep`.
            labels: as in `sample`, but None is "no label".
            seed: completion i of a seed is the same whatever n and the batch size.
            passes: 1 draws in raster order; each further pass fits the drawn codes to everything that is kept
                (`generate.complete.fill`) and takes several times as long as the first.
            sampling: None takes the run's own.
        """
        classes = None if labels is None else sample_labels(labels, n, self.classes)
        sampling = sampling or self.sampling
        return complete(self.autoencoder, self.prior, kept, n, classes, seed, sampling, passes)

    def log_prob(self, images: Tensor, labels: Sequence[str | int] | str | int | None = None) -> Tensor:
        """Natural log-probability of the images' codes, per level given the coarser ones, [B, L], on the CPU.

        It is the probability of the codes, not of the pixels: details that the autoencoder loses do not count.

        Args:
            images: [B, C, H, W] in [-1, 1].
            labels: as in `sample`, but None is "no label".
        """
        classes = None if labels is None else torch.tensor(sample_labels(labels, len(images), self.classes))
        batches = images.split(self.sampling.batch)
        codes = Codes.cat([self.autoencoder.encode(batch.to(self.device)) for batch in batches])
        return self._log_prob(codes, classes)

    def typical(self, labelled: bool = False) -> Typical | None:
        """The distribution of `log_prob` over held-out images (1,024 at most).

        Args:
            labelled: whether each is scored under its own class, or all under "no label".

        Returns:
            None if RUN/codes holds fewer than two held-out images, as for a model of the package.

        Raises:
            StoreError: RUN/codes is damaged, or belongs to another autoencoder.
        """
        if not self.done()["codes"]:
            return None
        store = open_store(self.paths.codes, digest=self._autoencoder[1])
        heldout = store.heldout[:: -(-len(store.heldout) // _REFERENCE) or 1]
        if len(heldout) < 2:
            return None
        labels = torch.from_numpy(np.array(store.labels[heldout])) if labelled else None
        return Typical(self._log_prob(store.codes(heldout), labels))

    @torch.no_grad()
    def _log_prob(self, codes: Codes, labels: Tensor | None) -> Tensor:
        batches = []
        for start in range(0, len(codes), self.sampling.batch):
            own = slice(start, start + self.sampling.batch)
            classes = None if labels is None else labels[own]
            batches.append(self.prior.log_prob(codes[own].to(self.device), classes).cpu())
        return torch.cat(batches)

    def done(self) -> dict[str, bool]:
        """Which stages are done, by name: "autoencoder", "codes", "prior level 0" ..."""
        stages = {"autoencoder": self.paths.autoencoder.done(), "codes": self.paths.manifest.exists()}
        for level in range(self.config.autoencoder.levels):
            stages[f"prior level {level}"] = self.paths.prior(level).done()
        return stages

    def digests(self) -> dict[str, str]:
        """The digest of the weights of each network that is trained, by the names of `done`."""
        stages = {"autoencoder": self.paths.autoencoder}
        stages |= {f"prior level {i}": self.paths.prior(i) for i in range(self.config.autoencoder.levels)}
        trained = {name: stage.model for name, stage in stages.items() if stage.done()}
        return {name: tensor_file.stored_digest(file) for name, file in trained.items()}

    def figures(self, level: int | None = None) -> dict[str, Any]:
        """The held-out figures of the weights that were kept; {} if not trained.

        Args:
            level: None for the autoencoder, else the level of a prior.

        Raises:
            FileError: the weights are damaged.
        """
        stage = self.paths.stage(level)
        if not stage.done():
            return {}
        _, metadata = tensor_file.load_tensors(stage.model)
        return dict(metadata.get("figures", {}))

    def _classless(self) -> str:
        return f"{self.folder} has no classes, so a critic cannot score its samples"

    def _fit_critic(self) -> str:
        source = self.record.get("source", "DATA")
        return f"`vqvae2 critic fit {self.folder} --data {source}` fits one"

    def _go_on(self) -> str:
        return f"`vqvae2 train {self.record.get('source', 'DATA')} --run {self.folder}` continues"


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
