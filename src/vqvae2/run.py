"""`Run`: one folder holding configuration, weights, codes, samples and reports; what `vqvae2.load` returns."""

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
from vqvae2.config.models import Config
from vqvae2.config.sampling import Sampling, sampling_of
from vqvae2.data.images import open_images
from vqvae2.data.store import CodeStore, open_store
from vqvae2.errors import UserError
from vqvae2.evaluate.critic import Critic, critic_file, fit_critic, load_critic
from vqvae2.evaluate.typicality import Typical
from vqvae2.files import tensor_file
from vqvae2.files.progress import Reporter
from vqvae2.generate.complete import Completed, Kept, complete, keep_coarse, keep_outside
from vqvae2.generate.reject import Chosen, Scorer, draw_best
from vqvae2.generate.sample import Drawn, draw_samples, label_plan
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.train.folder import RunError, load_autoencoder, load_prior, model_file, read_run

_REFERENCE = 1024  # held-out pictures to which others are compared, at most
_PARTS = ["config.yaml", "autoencoder/*", "prior/*", "README.md"]  # of a Hub repository that holds a run


def zoo() -> list[str]:
    """Names of the models shipped in the package."""
    folder = resources.files("vqvae2") / "zoo"
    return (
        sorted(item.name for item in folder.iterdir() if (item / "config.yaml").is_file())
        if folder.is_dir()
        else []
    )


def load(name: str | Path, device: torch.device | str | None = None) -> Run:
    """A run folder, a model of the zoo by name, or a Hub repository `owner/name` that holds a run folder.

    Args:
        device: where the models go; None chooses the accelerator if there is one.

    Raises:
        RunError: nothing of that name, or made by a newer version.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        return Run(path, device)
    text = str(name)
    if text in zoo():
        return Run(Path(str(resources.files("vqvae2") / "zoo" / text)), device)
    if path.exists():
        raise RunError(f"{path} is no run folder: it has no config.yaml")
    if text.count("/") == 1 and not text.startswith((".", "/")) and not path.parent.is_dir():
        try:
            return Run(Path(snapshot_download(text, allow_patterns=_PARTS)), device)
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise RunError(
                f"no folder {text}, and the Hub gave none: {' '.join(str(error).split())[:200]}"
            ) from None
    known = ", ".join(zoo()) or "none"
    raise RunError(
        f"no run {text}: expected a run folder, a model of the package ({known}) or a Hub id owner/name"
    )


class Run:
    """One trained (or half-trained) model and its folder.

    Args:
        folder: RUN.
        device: where the models go; None chooses the accelerator if there is one.

    Attributes:
        folder, config: where it is and what it was asked to be.
        record: version, command, source, fingerprint, classes.
        classes: class names, () without classes.
        sampling: how this run draws when nothing else is asked for (`sampling` of its configuration).
    """

    def __init__(self, folder: str | Path, device: torch.device | str | None = None) -> None:
        self.folder = Path(folder)
        self.record: dict[str, Any]
        self.config: Config
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
        if not model_file(self.folder).exists():
            raise RunError(f"the autoencoder of {self.folder} is not trained yet; {self._go_on()}")
        return load_autoencoder(self.folder, self.config, self.device)

    @cached_property
    def prior(self) -> HierarchicalPrior:
        """The priors of all levels, in eval mode.

        Raises:
            RunError: not trained yet.
        """
        for level in range(self.config.autoencoder.levels):
            if not model_file(self.folder, level).exists():
                raise RunError(
                    f"the prior of level {level} of {self.folder} is not trained yet; {self._go_on()}"
                )
        return load_prior(self.folder, self.config, self.device)

    @cached_property
    def critic(self) -> Critic:
        """What `vqvae2 critic fit` fitted: how likely a picture's class is, and how good it is at that.

        Raises:
            RunError: this run has no classes, or no critic is fitted.
        """
        if not self.classes:
            raise RunError(self._classless())
        if not critic_file(self.folder).exists():
            raise RunError(f"no critic is fitted for {self.folder}; {self._fit_critic()}")
        found = load_critic(self.folder, self.device)
        if found.classes != self.classes:
            raise RunError(f"the critic in {self.folder} is of other classes; {self._fit_critic()}")
        return found

    def fit_critic(
        self,
        data: str | None = None,
        features: str = "lite0",
        weights: Path | None = None,
        model: Path | None = None,
        reporter: Reporter | None = None,
    ) -> Critic:
        """Fit a critic on this run's training pictures and keep it in RUN/critic (`evaluate.critic.fit_critic`).

        Args:
            data: what the run was trained on, if it now lies elsewhere.

        Raises:
            RunError: no classes, or these are not the pictures that the run was trained on.
            DataError, CriticError, FeatureError, ClassifierError: see there.
        """
        if not self.classes:
            raise RunError(self._classless())
        reporter = reporter or Reporter(quiet=True)
        source = self.record.get("source")
        with ExitStack() as stack:
            own = data in (None, source)  # others must not take the place of the run's decoded pictures
            place = self.folder if own else Path(stack.enter_context(TemporaryDirectory()))
            images = open_images(
                str(data or source), self.config.data, place / "data", seed=self.config.seed, say=reporter.say
            )
            stack.callback(images.close)
            if images.fingerprint != self.record.get("fingerprint", images.fingerprint):
                raise RunError(
                    f"expected the pictures that {self.folder} was trained on ({source}), found others in {data or source}"
                )
            count = len(images.heldout) + (0 if model else len(images.train))
            tracker = stack.enter_context(reporter.track("critic", count, unit="images"))
            made = fit_critic(
                self.folder, images, self.config.data, features, weights, model, self.device, tracker.update
            )
        self.__dict__.pop("critic", None)
        return made

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
            labels: class name or number for all, several to be taken in turn, or None for all classes in turn.
            seed: sample i of a seed is the same whatever n and the batch size.
            sampling: temperature and the like; None takes the run's own (`run.sampling`).
            settings: temperature, top_k, top_p or guidance as keywords, in place of `sampling`; they change the run's own.
        """
        how = sampling_of(sampling, settings, self.sampling)
        return torch.cat([part.images.cpu() for part in self.draw(n, labels, seed, how)])

    def draw(
        self,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        parts: Iterable[range] | None = None,
    ) -> Iterator[Drawn]:
        """As `sample`, but an iterator of batches with labels and codes (`generate.sample.Drawn`).

        Args:
            parts: the numbers of those to draw, each range one batch; None: all n, in batches of `sampling.batch`.
        """
        plan = label_plan(labels, n, self.classes)
        return draw_samples(self.autoencoder, self.prior, n, plan, seed, sampling or self.sampling, parts)

    def draw_best(
        self,
        n: int,
        fraction: float,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        scorer: Scorer | None = None,
    ) -> Iterator[Chosen]:
        """As `draw`, but n / fraction are drawn, and the best of each class by a critic kept (`generate.reject.draw_best`).

        Args:
            fraction: 0 < fraction <= 1; 1 keeps all.
            scorer: any (images, labels) -> scores; None takes the run's own (`run.critic`).

        Raises:
            UserError: fraction out of range. RunError: no classes, or no scorer and no critic.
        """
        plan = label_plan(labels, n, self.classes)
        if plan is None:
            raise RunError(self._classless())
        scorer = scorer or self.critic
        return draw_best(
            self.autoencoder, self.prior, plan, seed, sampling or self.sampling, scorer, fraction
        )

    def reconstruct(self, images: Tensor, levels: int | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] through the codes and back, clipped to [-1, 1].

        Args:
            levels: use only this many levels, from the coarsest; None uses all.
        """
        codes = self.autoencoder.encode(images.to(self.device))
        return self.autoencoder.decode(codes, levels).to(images.device)

    def keep(self, image: Tensor, mask: Tensor | None = None, levels: int | None = None) -> Kept:
        """What is kept of an image [C, H, W] in [-1, 1] when it is completed; give a mask or a number of levels.

        Args:
            mask: [H, W] bool, True where the image is to be filled in; a code is redrawn if a pixel of its cell is.
            levels: keep this many levels, from the coarsest, 1 .. L - 1.

        Raises:
            UserError: both or neither; a mask that does not fit; levels out of range.
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
        """n completions of what `keep` kept, in batches; their `images` have the image's own pixels outside the mask.

        Args:
            labels: as in `sample`, but None is "no label".
            seed: completion i of a seed is the same whatever n and the batch size.
            passes: 1 draws in raster order; each further pass fits what is drawn to all that is kept
                (`generate.complete.fill`) and takes several times as long as the first.
            sampling: None takes the run's own.
        """
        plan = None if labels is None else label_plan(labels, n, self.classes)
        sampling = sampling or self.sampling
        return complete(self.autoencoder, self.prior, kept, n, plan, seed, sampling, passes)

    def log_prob(self, images: Tensor, labels: Sequence[str | int] | str | int | None = None) -> Tensor:
        """Natural log-probability of the images' codes, per level given the coarser ones, [B, L], on the CPU.

        It is of the codes, not of the pixels: what the autoencoder loses costs nothing.

        Args:
            images: [B, C, H, W] in [-1, 1].
            labels: as in `sample`, but None is "no label".
        """
        plan = None if labels is None else torch.tensor(label_plan(labels, len(images), self.classes))
        parts = (self.autoencoder.encode(part.to(self.device)) for part in images.split(self.sampling.batch))
        return self._log_prob(Codes.cat(list(parts)), plan)

    def code_store(self) -> CodeStore:
        """The codes of the images that this run was trained on, by its autoencoder.

        Raises:
            StoreError: RUN/codes is missing, damaged, or of another autoencoder.
        """
        return open_store(self.folder / "codes", digest=self._autoencoder[1])

    def typical(self, labelled: bool = False) -> Typical | None:
        """What `log_prob` is of held-out pictures (1,024 at most), each with its class or none with one.

        Returns:
            None if RUN/codes holds no two held-out pictures, as for a model of the package.

        Raises:
            StoreError: RUN/codes is damaged, or of another autoencoder.
        """
        if not self.done()["codes"]:
            return None
        store = self.code_store()
        heldout = store.heldout[:: -(-len(store.heldout) // _REFERENCE) or 1]
        if len(heldout) < 2:
            return None
        labels = torch.from_numpy(np.array(store.labels[heldout])) if labelled else None
        return Typical(self._log_prob(store.codes(heldout), labels))

    @torch.no_grad()
    def _log_prob(self, codes: Codes, labels: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, len(codes), self.sampling.batch):
            own = slice(start, start + self.sampling.batch)
            known = None if labels is None else labels[own]
            parts.append(self.prior.log_prob(codes[own].to(self.device), known).cpu())
        return torch.cat(parts)

    def done(self) -> dict[str, bool]:
        """Which parts are trained."""
        parts = {
            "autoencoder": model_file(self.folder).exists(),
            "codes": (self.folder / "codes" / "manifest.json").exists(),
        }
        for level in range(self.config.autoencoder.levels):
            parts[f"prior level {level}"] = model_file(self.folder, level).exists()
        return parts

    def digests(self) -> dict[str, str]:
        """What the weights are: the digest of each trained part's file."""
        parts = {"autoencoder": model_file(self.folder)}
        parts |= {
            f"prior level {i}": model_file(self.folder, i) for i in range(self.config.autoencoder.levels)
        }
        return {name: tensor_file.stored_digest(file) for name, file in parts.items() if file.exists()}

    def figures(self, level: int | None = None) -> dict[str, Any]:
        """The held-out figures of the kept weights: of the autoencoder (None) or of a level's prior; {} if not trained.

        Raises:
            FileError: the weights are damaged.
        """
        if not model_file(self.folder, level).exists():
            return {}
        _, metadata = tensor_file.load_tensors(model_file(self.folder, level))
        return dict(metadata.get("figures", {}))

    def _classless(self) -> str:
        return f"{self.folder} has no classes, so a critic has nothing to score samples by"

    def _fit_critic(self) -> str:
        source = self.record.get("source", "DATA")
        return f"`vqvae2 critic fit {self.folder} --data {source}` fits one"

    def _go_on(self) -> str:
        return f"`vqvae2 train {self.record.get('source', 'DATA')} --run {self.folder}` goes on"


def _device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


__all__ = ["Completed", "Drawn", "Kept", "Run", "Sampling", "load", "zoo"]
