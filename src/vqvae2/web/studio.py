"""What the page does with a run: it draws, takes images apart into codes and bits, completes them, and compresses.

Every result is JSON-ready; images are PNG in data URLs.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vqvae2.codes import Codes
from vqvae2.config.sampling import Sampling
from vqvae2.data.pixels import psnr
from vqvae2.errors import UserError
from vqvae2.generate.complete import Completed, Kept
from vqvae2.prior.hierarchy import UNKNOWN
from vqvae2.run import Run
from vqvae2.web.jobs import Jobs, Step
from vqvae2.web.pictures import bits_url, codes_url, image_urls, palette, read_mask
from vqvae2.web.requests import Completion, Fill, Request, Vary

_KEPT = 16  # uploaded images that are kept
_OPENED = 2**22  # pixels of a compressed file that is opened, at most, unless the run's own images have more

Read = Callable[[bytes], Tensor]
"""The image in the bytes of a file, as the run sees it: [C, H, W] in [-1, 1]; raises DataError."""


@dataclass(frozen=True)
class _Upload:
    image: Tensor
    codes: Codes


class Studio:
    """A run with the images that were uploaded.

    Args:
        run: its autoencoder is trained.
        read: decodes an uploaded file.
        jobs: runs what takes long.
    """

    def __init__(self, run: Run, read: Read, jobs: Jobs) -> None:
        self.run, self.read, self.jobs = run, read, jobs
        self.can_draw = all(done for name, done in run.done().items() if name.startswith("prior"))
        if self.can_draw:
            _ = run.prior, run.decoder()  # loaded here, so that no request does it beside a job
        self.palettes = [palette(quantizer.codebook()) for quantizer in run.autoencoder.quantizers]
        self._uploads: OrderedDict[str, _Upload] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """What the page needs to know of the run."""
        run, geometry = self.run, self.run.config.geometry
        return {
            "name": run.folder.resolve().name,
            "classes": list(run.classes),
            "channels": run.config.autoencoder.channels,
            "size": list(run.config.data.shape),
            "grids": [list(grid) for grid in geometry.grids],
            "vocabulary": list(geometry.vocabulary),
            "bytes": geometry.bits / 8,
            "sampling": run.sampling.model_dump(mode="json"),
            "decoders": ["plain", "sharp"] if run.paths.sharpen.done() else ["plain"],
            "figures": {key: value for key, value in run.figures().items() if key.startswith("heldout_psnr")},
            "draws": self.can_draw,
            "reports": reports(run),
        }

    def sample(self, request: Request) -> str:
        """Draw new images; the name of the job."""
        self._needs_priors()
        batch = max(1, -(-request.n // 4))  # four steps, so that the first images are soon there
        sampling = self._sampling(request, batch)
        self.run.config.prior.check_guidance(sampling)
        drawn = self.run.draw(request.n, request.label, request.seed, sampling, None, request.decoder)

        def steps() -> Iterator[Step]:
            for part in drawn:
                labels = part.labels.tolist() if part.labels is not None else [None] * len(part.images)
                names = [None if label is None else self.run.classes[label] for label in labels]
                pairs = zip(image_urls(part.images), names, strict=True)
                yield part.numbers.stop, [{"image": url, "label": name} for url, name in pairs]

        return self.jobs.start(request.n, steps)

    def upload(self, data: bytes) -> dict[str, Any]:
        """An image file taken apart.

        Returns:
            `id`; `image`, as the run sees it; `levels`: of each level the picture of its codes, how many different ones
            there are, the image decoded from the levels up to it with its PSNR in dB, and, if the priors are trained,
            the picture of its bits and their sum; `most`: bits per code at the light end of these pictures; `note`: why there
            are no bits although the priors are trained, and that `compress` packs the codes then, else "".

        Raises:
            DataError: a file that cannot be used.
        """
        image = self.read(data)
        lack = self._lacks_unlabelled()
        with self.jobs.lock, torch.no_grad():
            model, batch = self.run.autoencoder, image[None].to(self.run.device)
            codes = model.encode(batch)
            bits = []
            if self.can_draw and not lack:
                bits = [
                    -level[0].cpu() / torch.log(torch.tensor(2.0))
                    for level in self.run.prior.log_prob_map(codes)
                ]
            count = len(codes.levels)
            counts = range(1, count + 1)
            decoded = [self.run.decoder(None, levels).decode(codes, levels).cpu() for levels in counts]
            codes = codes.to("cpu")  # what follows may run beside a job, and MPS serves one thread at a time
        name = secrets.token_urlsafe(8)
        self._uploads[name] = _Upload(image, codes)
        while len(self._uploads) > _KEPT:
            self._uploads.popitem(last=False)
        most = max((float(level.max()) for level in bits), default=0.0)
        levels = []
        for index, level in enumerate(codes.levels):
            entry = {
                "codes": codes_url(level[0], self.palettes[index]),
                "different": len(set(level.flatten().tolist())),
                "image": image_urls(decoded[index])[0],
                "psnr": float(psnr(decoded[index], image[None])[0]),
            }
            if bits:
                entry |= {"bits": bits_url(bits[index], most), "sum": float(bits[index].sum())}
            levels.append(entry)
        note = (
            f"No bits are shown, and a compressed file is packed (log2 K bits for each code): {lack}."
            if lack
            else ""
        )
        return {"id": name, "image": image_urls(image[None])[0], "levels": levels, "most": most, "note": note}

    def fill(self, request: Fill) -> str:
        """Fill in the masked area of an uploaded image; the name of the job."""
        found = self._find(request.image)
        try:
            mask = read_mask(request.mask, *found.image.shape[1:])
        except ValueError as error:
            raise UserError(str(error)) from None
        if not bool(mask.any()):
            raise UserError("nothing is painted: paint over the part that is to be filled in")
        self._needs_priors()
        return self._complete(request, found, lambda: self.run.keep(found.image, mask))

    def vary(self, request: Vary) -> str:
        """Draw a level of an uploaded image and all finer ones again; the name of the job.

        Raises:
            UserError: no such level.
        """
        found, count = self._find(request.image), self.run.config.autoencoder.levels
        if request.level >= count:
            raise UserError(f"expected a level 0..{count - 1}, found {request.level}")
        self._needs_priors()

        def keep() -> Kept:
            levels = (
                torch.full_like(level, UNKNOWN) if index >= request.level else level
                for index, level in enumerate(found.codes.levels)
            )
            image, codes = found.image.to(self.run.device), Codes(tuple(levels)).to(self.run.device)
            return Kept(image, None, image, codes)

        return self._complete(request, found, keep)

    def compress(self, name: str) -> bytes:
        """An uploaded image as a compressed file: under the priors, or packed if they cannot be used without a label.

        Raises:
            UserError: there is no such image, or the priors are not trained yet.
        """
        found = self._find(name)
        lack = self._lacks_unlabelled()
        with self.jobs.lock:
            return self.run.compress(found.image, mode="packed" if lack else "prior")

    def decompress(self, data: bytes) -> dict[str, Any]:
        """The image of a file that `compress` made.

        Raises:
            UserError: a file of another model, a damaged one, one of a larger image than the page opens, or the priors are not
                trained yet.
        """
        height, width = self.run.config.data.shape
        with self.jobs.lock:
            found = self.run.codec.decompress([data], max(_OPENED, height * width))
            (image,) = self.run.codec.decode(found, self.run.decoder())
        return {"image": image_urls(image[None])[0], "bytes": len(data)}

    def _complete(self, request: Completion, found: _Upload, keep: Callable[[], Kept]) -> str:
        """Start a completion of an image; `keep` computes on the device, so the job calls it."""
        batch = max(1, -(-request.n // 4))
        sampling = self._sampling(request, batch)

        def drawn(kept: Kept) -> Iterator[Completed]:
            return self.run.complete(
                kept, request.n, request.label, request.seed, request.passes, sampling, request.decoder
            )

        # draws nothing, but refuses a mistake at once
        drawn(Kept(found.image, None, found.image, found.codes))

        def steps() -> Iterator[Step]:
            for part in drawn(keep()):
                sums = part.bits[-1, :, 0].sum(1).tolist()
                pairs = zip(image_urls(part.images), sums, strict=True)
                yield part.numbers.stop, [{"image": url, "bits": bits} for url, bits in pairs]

        return self.jobs.start(request.n, steps)

    def _sampling(self, request: Request, batch: int) -> Sampling:
        """How the request draws.

        Raises:
            UserError: out of range, or a list of values that is not one for each level.
        """
        sampling = request.sampling(self.run.sampling, batch)
        sampling.level(0, self.run.config.autoencoder.levels)
        return sampling

    def _find(self, name: str) -> _Upload:
        found = self._uploads.get(name)
        if found is None:
            raise UserError("the image is no longer here; choose it again")
        return found

    def _lacks_unlabelled(self) -> str | None:
        """Why the priors, if they are trained, cannot be used without a label, which the page cannot give to an upload."""
        return self.run.config.prior.lacks_unlabelled() if self.can_draw else None

    def _needs_priors(self) -> None:
        if not self.can_draw:
            raise UserError("the priors of this run are not trained yet, so nothing can be drawn")


def reports(run: Run) -> dict[str, str]:
    """The pages in RUN/report that exist, by what they are of: evaluation, demo, training."""
    files = {"Evaluation": "report.html", "Demo": "demo.html", "Training": "training.html"}
    return {name: file for name, file in files.items() if (run.paths.report / file).is_file()}
