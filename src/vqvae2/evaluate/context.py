"""What the parts of a report measure: sets of images, their codes and their features, each made when it is first needed.

    training images --shuffled--> training, of which the first are the reference
    held-out images --shuffled--> held out  --encoder--> reconstructions
    samples of the run, or a folder; further folders

Every set is compared with the same reference at the same n. Held-out real images are compared beside the samples: no sample can
be expected to score better. Samples take the classes of the training images in their shuffled order, so the first n samples of
any n have about the class frequencies of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import DataConfig
from vqvae2.data.images import ImageSet
from vqvae2.data.store import CodeStore, StoreError, open_store
from vqvae2.errors import UserError, suggested
from vqvae2.evaluate.encoding import Encoder, stored_rows
from vqvae2.evaluate.features import FeatureNetwork, Features, cached, extract, keep
from vqvae2.evaluate.networks.by_name import feature_network
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.own_samples import own_samples
from vqvae2.evaluate.sets import BATCH, NamedImages, batch_size, folder_images, real_images, shuffled
from vqvae2.evaluate.sets import digest as digest_of
from vqvae2.evaluate.trained_run import TrainedRun
from vqvae2.files.parts import Parts, cut
from vqvae2.files.progress import Reporter
from vqvae2.files.run_folder import DecoderName, RunFolder
from vqvae2.files.tensor_file import digest, load_tensors
from vqvae2.processes import Group

RESERVED_NAMES = frozenset({
    "training", "held out", "reference", "reconstructions", "samples", "candidates",
    "reconstructions of training", "reconstructions of held out", "reconstructions of the reference",
    "reconstructions, plain decoder", "reconstructions, sharp decoder",
})  # fmt: skip
"""Names of sets of a report, which no other folder may have."""
_DECODERS: tuple[DecoderName, ...] = ("plain", "sharp")
_PART = 16 * BATCH  # images of which one process computes the features at a time
_LEAST = 6  # precision and recall need more images than the fifth neighbour
_PACKAGES = ("vqvae2", "torch", "numpy", "scipy", "torchmetrics", "pillow")

Need = Literal["run", "priors", "samples", "classes", "critic", "sets", "network"]


class Context:
    """Everything that the parts need, each made once and when it is first asked for.

    Args:
        run: the run that is measured, or None for folders alone.
        images: the real images, split into training and held-out ones.
        data: how the run sees images.
        options: what is measured.
        cache: folder for features and decoded images, which the next evaluation reuses.
        reporter: shows the progress.
        network: the feature network if it is read already; None reads the one that the options name.
        group: the processes that make samples, features and likelihoods together. While it has more than this one, all of them
            call the same methods in the same order.

    Attributes:
        measured: whose held-out images are measured; others than `images` may be put here before anything is.
        warnings: lines for the reader of the report.
        listed: sets that a part made for itself, for the protocol.
        device: of the networks, where features are compared too; another one may be put here before anything is made.
    """

    def __init__(
        self,
        run: TrainedRun | None,
        images: ImageSet,
        data: DataConfig,
        options: EvaluateOptions,
        cache: Path,
        reporter: Reporter,
        network: FeatureNetwork | None = None,
        group: Group | None = None,
    ) -> None:
        self._given, self.group = network, group or Group()
        self.run, self.images, self.data, self.options = run, images, data, options
        self.measured, self.cache, self.reporter = images, cache, reporter
        self.warnings: list[str] = []
        self.listed: list[NamedImages] = []
        self.device = run.device if run else torch.device("cpu")
        self._features: dict[str, Features] = {}
        self._rows_of: dict[str, dict[str, Tensor]] = {}

    # --- what can be measured ------------------------------------------------------------------------------------

    def missing(self, need: Need) -> str | None:
        """Why a requirement of a part is not met, as text; None if it is met."""
        if need == "run":
            return None if self.run else "it needs a RUN"
        if need == "priors" or (need == "samples" and self.options.samples is None):
            return f"not trained yet: {', '.join(self.untrained)}" if self.untrained else None
        if need == "classes" and not self._labelled:
            return "it needs classes, of the data and of the samples"
        if need == "critic" and self.run and not RunFolder(self.run.folder).critic.exists():
            command = suggested("critic", "fit", self.run.folder, "--data", "DATA")
            return f"no critic is fitted; {command} fits one"
        try:
            if need == "sets":
                _ = self.n
            if need == "network":
                if self.data.channels not in (1, 3, 4):
                    return f"features need 1, 3 or 4 channels, found {self.data.channels}"
                _ = self.network
        except UserError as error:
            return str(error)
        return None

    @property
    def untrained(self) -> list[str]:
        """Names of the priors of the run that are not trained yet."""
        done = self.run.done() if self.run else {}
        return [name for name, is_done in done.items() if name.startswith("prior") and not is_done]

    @property
    def _labelled(self) -> bool:
        return bool(self.images.classes and self.measured.classes) and (
            self.options.samples is None or self.samples.labels is not None
        )

    # --- sets of images ------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        """Images in one batch."""
        return batch_size(self.data, self.device)

    def _real(self, name: str, images: ImageSet, indices: NDArray[np.int64]) -> NamedImages:
        order = shuffled(indices, self.options.seed)
        rows = None if self._rows is None or images is not self.images else self._rows[order]
        return replace(real_images(name, images, order, self.data, self.batch), rows=rows)

    @cached_property
    def training(self) -> NamedImages:
        """All training images, shuffled."""
        return self._real("training", self.images, self.images.train)

    @cached_property
    def heldout(self) -> NamedImages:
        """All held-out images, shuffled."""
        return self._real("held out", self.measured, self.measured.heldout)

    @cached_property
    def n(self) -> int:
        """How many images of each set are compared: `options.most`, or the size of the smallest set if that is less."""
        sizes = {"--n": self.options.most, "held out": len(self.heldout), "training": len(self.training)}
        sizes |= {name: len(images) for name, images in self.others.items()}
        if self.options.samples is not None:
            sizes["samples"] = len(self.samples)
        least = min(sizes, key=lambda name: sizes[name])
        if sizes[least] < _LEAST:
            raise UserError(f"expected at least {_LEAST} images of each set, found {sizes[least]} ({least})")
        if least != "--n":
            self.warnings.append(f"every set is cut to {sizes[least]} images, as many as {least} has")
        return sizes[least]

    @cached_property
    def reference(self) -> NamedImages:
        """The training images with which all sets are compared."""
        return replace(self.training.first(max(self.n, self.options.reference)), name="reference")

    @cached_property
    def others(self) -> dict[str, NamedImages]:
        """The further folders, by name."""
        return {name: self._folder(name, path) for name, path in self.options.against.items()}

    def _folder(self, name: str, path: Path) -> NamedImages:
        cache = self.cache / f"pictures-{name}"
        with self.group.main_first():
            return folder_images(name, path, self.images.classes, self.data, cache, self.batch)

    @cached_property
    def samples(self) -> NamedImages:
        """The samples of a folder if one is given, else n samples of the run."""
        if self.options.samples is not None:
            return self._folder("samples", self.options.samples)
        return self.draw(self.n)

    def draw(self, n: int) -> NamedImages:
        """The first n samples of the run."""
        assert self.run is not None
        return own_samples(self.run, n, self.images, self.options, self.cache, self.reporter, self.group)

    @cached_property
    def compared(self) -> dict[str, NamedImages]:
        """The sets that are compared with the reference, n of each, by name; held-out images come first."""
        sets = {"held out": self.heldout.first(self.n)}
        if self.run is not None:
            for suffix, encoder in self.encoders.items():
                name = f"reconstructions{suffix}"
                sets[name] = encoder.reconstructed(name, sets["held out"])
        if self.options.samples is not None or not self.untrained:
            sets["samples"] = self.samples.first(self.n)
        return sets | {name: images.first(self.n) for name, images in self.others.items()}

    # --- codes and features --------------------------------------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The autoencoder of the run with the decoder that is measured, and its code store."""
        return self.encoders[""]

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The decoder that is measured, and beside it the other one if the run has both.

        The keys are what follows the names of their sets: "" and, say, ", plain decoder".
        """
        assert self.run is not None
        digests, used = self.run.digests(), self.run.decoder_name(self.options.decoder)
        weights = {"plain": digests["autoencoder"]}
        if "sharpen" in digests:
            weights["sharp"] = digest_of(digests["autoencoder"], digests["sharpen"])
        names: dict[str, DecoderName] = {"": used}
        names |= {f", {other} decoder": other for other in _DECODERS if other in weights and other != used}
        return {
            suffix: Encoder(self.run.decoder(name), weights[name], self._store)
            for suffix, name in names.items()
        }

    @cached_property
    def _store(self) -> CodeStore | None:
        if self.run is None:
            return None
        folder = RunFolder(self.run.folder)
        try:
            store = open_store(folder.codes)
        except StoreError:  # missing or damaged: the images are encoded instead
            return None
        weights, _ = load_tensors(folder.autoencoder.model)
        return store if store.digest == digest(weights) else None

    @cached_property
    def _rows(self) -> NDArray[np.int64] | None:
        return None if self._store is None else stored_rows(self._store, self.images)

    @cached_property
    def network(self) -> FeatureNetwork:
        """The network whose features are compared."""
        return self._given or feature_network(self.options.network, self.options.weights, self.device)

    def features(self, images: NamedImages) -> Features:
        """The features of a set, from the cache if they are there; otherwise the processes compute them together."""
        if images.name not in self._features:
            network, key = self.network, images.key
            file = self.cache / f"features-{network.name}-{key[:16]}.safetensors"
            found = self.group.agreed(cached(file, network, key))
            if found is None:

                def some(rows: range) -> dict[str, Tensor]:
                    made = extract(network, images.source(slice(rows.start, rows.stop)))
                    logits = {} if made.logits is None else {"logits": made.logits}
                    seconds = torch.full((len(rows),), made.seconds / len(rows))
                    return {"pooled": made.pooled, **logits, "seconds": seconds}

                rows = self.together(
                    f"features of {images.name}", digest_of(network.digest, key), len(images), some
                )
                seconds = float(rows["seconds"].double().sum())
                found = Features(rows["pooled"], rows.get("logits"), seconds)
                if self.group.main:
                    keep(file, found, network, key)
            self._features[images.name] = found
        return self._features[images.name]

    def forget(self, images: NamedImages) -> None:
        """Let go of the features of a set, which stay in their file."""
        self._features.pop(images.name, None)
        self._rows_of.pop(digest_of(self.network.digest, images.key), None)

    def log_prob(self, images: NamedImages) -> Tensor:
        """The natural log-probability of the codes of a set per level, [n, L]; with its classes if the prior has classes, and
        also the held-out images do, with which it is compared."""
        assert self.run is not None
        encoder, prior = self.encoder, self.run.prior
        labelled = self.run.config.prior.classes and self.heldout.labels is not None
        labels = images.labels if labelled else None

        @torch.no_grad()
        def some(rows: range) -> dict[str, Tensor]:
            done, at = [], rows.start
            for codes in encoder.codes(images, slice(rows.start, rows.stop)):
                own = None if labels is None else labels[at : at + len(codes)].to(encoder.device)
                done.append(prior.log_prob(codes, own).cpu())
                at += len(codes)
            return {"log_prob": torch.cat(done)}

        key = digest_of("log_prob", images.key, self.run.digests(), labels is None)
        return self.together(f"likelihood of {images.name}", key, len(images), some)["log_prob"]

    def together(
        self, title: str, key: str, count: int, some: Callable[[range], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What `some` returns for ranges of rows, of all rows; computed by all processes in parts that survive a kill.

        Args:
            title: shown with the progress.
            key: sha-256 that identifies the result, which is kept in memory under it.
            count: of rows.
            some: tensors [b, ...] of the b rows of a range.
        """
        if key not in self._rows_of:
            parts = self.in_parts(title, key, count, some)
            self._rows_of[key] = parts.joined()
            parts.remove()
        return self._rows_of[key]

    def in_parts(
        self, title: str, key: str, count: int, some: Callable[[range], Mapping[str, Tensor]]
    ) -> Parts:
        """The same in parts, which stay on the disk: what is larger than the memory is read part by part."""
        parts = Parts(self.cache / "parts" / key[:16], key, cut(count, _PART), self.group)
        parts.begin()
        with self.reporter.track(title, sum(map(len, parts.mine)), unit="images") as tracker:
            parts.compute(some, tracker.update)
        return parts

    def make_features(self) -> None:
        """Make the features of all compared sets and of the reference, with and without reconstruction."""
        for images in (self.reference, *self.compared.values()):
            self.features(images)
        self.reconstructed_reference  # noqa: B018 - makes it

    @cached_property
    def reconstructed_reference(self) -> Features | None:
        """Features of the reconstructed reference, with which reconstructions and samples are compared too.

        None if there are no reconstructions or no samples.
        """
        if self.run is None or "samples" not in self.compared:
            return None
        return self.features(self.encoder.reconstructed("reconstructions of the reference", self.reference))

    @cached_property
    def perceptual(self) -> PerceptualDistance | None:
        """The perceptual distance; None if the options name no weights."""
        weights = self.options.perceptual
        return None if weights is None else PerceptualDistance.read(weights).to(self.device)

    # --- the record ----------------------------------------------------------------------------------------------

    def seconds(self) -> dict[str, float]:
        """How long the network took for each set of images."""
        return {f"features of {name}": features.seconds for name, features in self._features.items()}

    def protocol(self) -> dict[str, Any]:
        """How the figures were measured, JSON-ready; sets and networks are listed if a part used them."""
        used = self.__dict__  # where cached_property keeps what was made
        sets = [self.training, self.heldout]
        if "compared" in used:
            sets += [self.reference, *self.compared.values(), *self.listed]
        images = self.images
        result: dict[str, Any] = {
            "data": {
                "fingerprint": images.fingerprint,
                "training": len(images.train),
                "held_out": len(self.measured.heldout),
                "classes": list(images.classes),
            },
            "size": self.data.size,
            "seed": self.options.seed,
            "samples": "of the run" if self.options.samples is None else str(self.options.samples),
            "sets": [{"name": s.name, "n": s.n, "key": s.key} for s in sets],
            "packages": {name: metadata.version(name) for name in _PACKAGES},
        }
        if self.options.split is not None:
            result["data"] |= {
                "split": self.options.split,
                "fingerprint_of_split": self.measured.fingerprint,
            }
        if self.run is not None:
            sampling = self.options.sampling or self.run.sampling
            result["run"] = {
                "folder": str(self.run.folder),
                "weights": self.run.digests(),
                "decoder": self.run.decoder_name(self.options.decoder),
                "sampling": sampling.model_dump(mode="json"),
            }
        if "network" in used:
            net = self.network
            names = ("name", "weights", "size", "resize")
            result["network"] = dict(zip(names, (net.name, net.digest, net.size, net.resize), strict=True))
        if used.get("perceptual") is not None:
            result["perceptual"] = used["perceptual"].about()
        return result
