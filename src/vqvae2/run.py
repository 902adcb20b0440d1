"""`Run`: a run folder as an object. It loads the models and draws, reconstructs, completes and scores images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqvae2.codec.codec import Codec
from vqvae2.codec.container import Mode
from vqvae2.codes import Codes
from vqvae2.config.numbers import whole
from vqvae2.config.sampling import Sampling, sampling_of
from vqvae2.data.pixels import as_tensor, finite
from vqvae2.data.store import open_store
from vqvae2.errors import UserError
from vqvae2.evaluate.code_likelihood import bits_in_batches, log_prob_in_batches
from vqvae2.evaluate.critic import Critic, fit_to_run, load_critic
from vqvae2.evaluate.typicality import LEAST, Typical
from vqvae2.files.locate import find_run
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import DecoderName, RunError
from vqvae2.generate.complete import Completed, Kept, Passes, complete, keep_coarse, keep_outside
from vqvae2.generate.reject import Chosen, Scorer, draw_best
from vqvae2.generate.sample import Drawn, class_number, draw_samples, image_labels, sample_labels
from vqvae2.processes import Group
from vqvae2.sharing import Card, push
from vqvae2.train.loaded_run import LoadedRun

_REFERENCE = 1024  # held-out images with which others are compared, at most


def load(name: str | Path, device: torch.device | str | None = None) -> Run:
    """Open a run.

    Args:
        name: a run folder, the name of a model of the zoo, or a Hub repository `owner/name` that holds a run folder.
        device: where the models go; None chooses the accelerator if there is one.

    Raises:
        RunError: nothing of that name, or made by a newer version.
        UserError: no such device on this machine.
    """
    return Run.from_pretrained(name, device)


class Run(LoadedRun):
    """A trained (or partly trained) model and its folder.

    Args:
        folder: RUN.
        device: where the models go; None chooses the accelerator if there is one.

    Attributes:
        device: where the models are; the other attributes are those of `StoredRun`.

    Raises:
        RunError: `folder` is no run folder, or was made by a newer version.
        UserError: no such device on this machine.
    """

    @classmethod
    def from_pretrained(cls, name: str | Path, device: torch.device | str | None = None, **hub: Any) -> Run:
        """As `load`, with the Hub's usual arguments.

        Args:
            hub: revision, token, cache_dir, local_files_only and the like, for `huggingface_hub.snapshot_download`.
        """
        return cls(find_run(name, **hub), device)

    def push_to_hub(self, repository: str, license: str, data: str = "", **how: Any) -> str:
        """Upload weights, settings and a model card to the Hub; see `sharing.push`.

        Args:
            repository: "owner/name"; created if it does not exist.
            license: of the weights, as the Hub abbreviates it, such as "apache-2.0".
            data: a sentence about the training images and their licence, for the card.
            how: private, message, revision.

        Returns:
            The address of the commit.

        Raises:
            RunError: a network is not trained yet.
            HubError: no such name, no access, no connection.
        """
        return push(self, repository, Card(license, data), **how)

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
        critic = load_critic(self.paths.path, self.device)
        if critic.classes != self.classes:
            raise RunError(f"the critic in {self.folder} is of other classes; {self._fit_critic()}")
        fitted, own = critic.record.get("fingerprint"), self.record.get("fingerprint")
        if fitted and own and fitted != own:
            raise RunError(f"the critic in {self.folder} was fitted to other images; {self._fit_critic()}")
        return critic

    def fit_critic(
        self,
        data: str | None = None,
        features: str = "lite0",
        weights: Path | None = None,
        model: Path | None = None,
        reporter: Reporter | None = None,
        group: Group | None = None,
    ) -> Critic:
        """Fit a critic to this run's training images and keep it in RUN/critic (`evaluate.critic.fit_to_run`).

        Args:
            data: the images that the run was trained on, if they are elsewhere now.
            features: its backbone; this, `weights` and `model` are as for `evaluate.critic.CriticKind`.
            group: the processes that share the work, all of which call this.

        Raises:
            RunError: no classes, or these are not the images that the run was trained on.
        """
        if not self.classes:
            raise RunError(self._classless())
        self.__dict__.pop("critic", None)  # the cached property
        return fit_to_run(self, data, features, weights, model, reporter or Reporter(quiet=True), group)

    def sample(
        self,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        decoder: DecoderName | None = None,
        **settings: Any,
    ) -> Tensor:
        """n new images [n, C, H, W] in [-1, 1], on the CPU.

        Args:
            labels: a class name or number for all, several that are repeated in turn, or None for all classes in turn.
            seed: sample i of a seed is the same whatever n and the batch size, on a card up to float32 rounding.
            sampling: temperature and the like; None takes the run's own (`run.sampling`).
            decoder: see `decoder_name`; here and below, the images depend on it, the codes do not.
            settings: temperature, top_k, top_p or guidance as keywords instead of `sampling`; they change the run's own.

        Raises:
            RunError: not trained yet.
            UserError: no such class, or an argument out of range.
        """
        own = sampling_of(sampling, settings, self.sampling)
        return torch.cat([part.images.cpu() for part in self.draw(n, labels, seed, own, decoder=decoder)])

    def draw(
        self,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        ranges: Iterable[range] | None = None,
        decoder: DecoderName | None = None,
        **settings: Any,
    ) -> Iterator[Drawn]:
        """As `sample`, but batch by batch, with labels and codes, and on the run's device.

        Args:
            ranges: the numbers of the samples to draw, each range one batch; None draws all n, in batches of
                `sampling.batch`.
        """
        classes = sample_labels(labels, n, self.classes)
        how = sampling_of(sampling, settings, self.sampling)
        return draw_samples(self.decoder(decoder), self.prior, n, classes, seed, how, ranges)

    def draw_best(
        self,
        n: int,
        fraction: float,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
        scorer: Scorer | None = None,
        decoder: DecoderName | None = None,
        **settings: Any,
    ) -> Iterator[Chosen]:
        """As `draw`, but n / fraction candidates are drawn and the best of each class are kept (`generate.reject`).

        Args:
            fraction: 0 < fraction <= 1; 1 keeps all.
            scorer: any function (images, labels) -> scores, both on the run's device; None takes the run's critic.

        Raises:
            UserError: fraction out of range.
            RunError: no classes, or neither a scorer nor a critic.
        """
        classes = sample_labels(labels, n, self.classes)
        if classes is None:
            raise RunError(self._classless())
        scorer, how = scorer or self.critic, sampling_of(sampling, settings, self.sampling)
        return draw_best(self.decoder(decoder), self.prior, classes, seed, how, scorer, fraction)

    def reconstruct(
        self, images: Tensor, levels: int | None = None, decoder: DecoderName | None = None
    ) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] through the codes and back, clipped to [-1, 1], in the dtype that they came in.

        Args:
            levels: use only this many levels, from the coarsest; None uses all.
            decoder: see `decoder`.

        Raises:
            ConfigError, DataError: no finite floating-point numbers, or images of another shape.
        """
        levels = None if levels is None else whole(levels, "the number of levels")
        images = as_tensor(images)
        codes = self.encode(images)
        return self.decoder(decoder, levels).decode(codes, levels).to(images.device, images.dtype)

    def keep(self, image: Tensor, mask: Tensor | None = None, levels: int | None = None) -> Kept:
        """What to keep of an image when it is completed. Exactly one of `mask` and `levels` is needed.

        Args:
            image: [C, H, W] in [-1, 1].
            mask: [H, W] bool, True where the image is to be filled in; a code is redrawn if any pixel of its cell is.
            levels: keep this many levels, from the coarsest, 1 .. L - 1.

        Raises:
            UserError: both or neither; a mask of another size; levels out of range; an image as for `keep_outside`.
        """
        image = as_tensor(image, "an image").to(self.device)
        if mask is not None and levels is None:
            return keep_outside(self.autoencoder, image, as_tensor(mask, "a mask").to(self.device))
        if levels is not None and mask is None:
            return keep_coarse(self.autoencoder, image, levels)
        raise UserError("expected either a mask or a number of levels to keep")

    def complete(
        self,
        kept: Kept,
        n: int,
        labels: Sequence[str | int] | str | int | None = None,
        seed: int = 0,
        passes: int | Passes = 1,
        sampling: Sampling | None = None,
        decoder: DecoderName | None = None,
        **settings: Any,
    ) -> Iterator[Completed]:
        """Complete an image n times, batch by batch, on the run's device; outside the mask the results have the pixels of the image itself.

        Args:
            kept: from `keep`.
            labels: as in `sample`, but None is "no label".
            seed: completion i of a seed is the same whatever n and the batch size.
            passes: 1 draws in raster order; each further pass fits the drawn codes to everything that is kept
                (`generate.complete.fill`) and takes several times as long as the first. A `Passes` is told of each.
            sampling: as in `sample`.
            settings: as in `sample`.
        """
        classes = None if labels is None else sample_labels(labels, n, self.classes)
        how = sampling_of(sampling, settings, self.sampling)
        return complete(self.decoder(decoder), self.prior, kept, n, classes, seed, how, passes)

    @property
    def codec(self) -> Codec:
        """What compresses images with this run; with priors that are not trained yet, it can only pack codes."""
        trained = all(done for name, done in self.done().items() if name.startswith("prior"))
        return self._codec if trained else Codec(self.autoencoder, self.config.data.shape, None)

    @cached_property
    def _codec(self) -> Codec:
        return Codec(self.autoencoder, self.config.data.shape, self.prior)

    def compress(self, image: Tensor, label: str | int | None = None, mode: Mode = "prior") -> bytes:
        """An image [C, H, W] in [-1, 1], of any size, as the content of a file; `codec.compress` takes several at once.

        Args:
            label: its class, which saves some bytes; with the mode "packed" there is none.
            mode: "prior": about -log2 p bits for each code; "packed": log2 K, without the priors, and much faster.

        Raises:
            CodecError: an image that cannot be compressed, or the priors are not trained yet; UserError: no such class, or a label with
                the mode "packed".
        """
        if label is not None and mode == "packed":
            raise UserError('a label needs the mode "prior": packed codes do not depend on the class')
        return self.codec.compress(
            [image], [None if label is None else class_number(label, self.classes)], mode
        )[0]

    def decompress(self, data: bytes, decoder: DecoderName | None = None, fill: bool = False) -> Tensor:
        """The image [C, H, W] in [-1, 1] of what `compress` returned, on the CPU.

        Args:
            data: may be cut off after any level, coarsest first; the image then shows the levels that are there.
            fill: draw levels that are cut off from the prior (seed 0, the run's own settings), instead of leaving them out.

        Raises:
            CodecError: damaged, cut off within the coarsest level, or compressed with another model.
        """
        found = self.codec.decompress([data])[0]
        found = self.codec.fill(found, sampling=self.sampling) if fill else found
        return self.codec.decode([found], self.decoder(decoder))[0]

    def log_prob(self, images: Tensor, labels: Sequence[str | int] | str | int | None = None) -> Tensor:
        """Natural log-probability of the images' codes, per level given the coarser ones, [B, L], on the CPU.

        It is the probability of the codes, not of the pixels: details that the autoencoder loses do not count.

        Args:
            images: [B, C, H, W] in [-1, 1].
            labels: a class name or number for all images, or one for each; None is "no label", for all or in the list.

        Raises:
            RunError: not trained yet.
            UserError: no such class, neither one label nor B of them, or images as for `encode`.
        """
        return log_prob_in_batches(self.prior, *self._scored(images, labels), self.sampling.batch)

    def bits_map(self, images: Tensor, labels: Sequence[str | int] | str | int | None = None) -> list[Tensor]:
        """Where the bits of `log_prob` are: -log2 p of each code, [B, h, w] per level, on the CPU; arguments as there."""
        return bits_in_batches(self.prior, *self._scored(images, labels), self.sampling.batch)

    def _scored(self, images: Tensor, labels: Any) -> tuple[Codes, Tensor | None]:
        """The codes and the class numbers of images."""
        images = finite(images)
        self.autoencoder.check_images(images)
        classes = image_labels(labels, len(images), self.classes)
        batches = images.split(self.sampling.batch)
        codes = Codes.cat([self.autoencoder.encode(batch.to(self.device)) for batch in batches])
        return codes, None if classes is None else torch.tensor(classes)

    def typical(self, labelled: bool = False) -> Typical | None:
        """The distribution of `log_prob` over held-out images (1,024 at most).

        Args:
            labelled: whether each is scored under its own class, or all under "no label".

        Returns:
            None if RUN/codes holds fewer than 19 held-out images (`typicality.LEAST`), as for a model of the package.

        Raises:
            StoreError: RUN/codes is damaged, or belongs to another autoencoder.
        """
        if not self.done()["codes"]:
            return None
        store = open_store(self.paths.codes, digest=self._autoencoder[1])
        heldout = store.heldout[:: -(-len(store.heldout) // _REFERENCE) or 1]
        if len(heldout) < LEAST:
            return None
        labels = torch.from_numpy(np.array(store.labels[heldout])) if labelled else None
        batch = self.sampling.batch
        return Typical(log_prob_in_batches(self.prior, store.codes(heldout), labels, batch))
