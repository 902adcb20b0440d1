"""A run on the Hugging Face Hub: what is shared of it, its model card, and the upload.

RUN --stage--> config.yaml, README.md, */model.safetensors --push--> Hub --`vqvae2.load("owner/name")`--> Run

Shared are weights (safetensors), settings and the card. Images, codes and logs stay where they are, and so do the
command and the paths of the machine that trained the run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import HfApi

from vqvae2.config.training import TrainConfig
from vqvae2.data.store import open_store
from vqvae2.errors import UserError, listed
from vqvae2.files.atomic import reason, write_text
from vqvae2.files.locate import HTTP_ERROR, HUB_FILES, is_public
from vqvae2.files.output import make_folder
from vqvae2.files.run_folder import RunError
from vqvae2.train.folder import write_config
from vqvae2.train.paths import PLACES
from vqvae2.train.stored_run import StoredRun


class HubError(UserError):
    """The Hub cannot be reached, or refuses."""


@dataclass(frozen=True)
class Card:
    """What the model card says beyond what the run itself knows.

    Attributes:
        license: of the weights, as the Hub abbreviates it: "apache-2.0", "cc-by-4.0", "other".
        data: a sentence about the training images and their licence; "" leaves it out.
        title: "" takes the name of the repository.
    """

    license: str
    data: str = ""
    title: str = ""


def push(
    run: StoredRun,
    repository: str,
    card: Card,
    private: bool = False,
    message: str = "",
    revision: str | None = None,
) -> str:
    """Upload a trained run to the Hub; the repository is created if it does not exist, and files of earlier uploads
    that the run no longer has are deleted there.

    Args:
        run: every network of its settings is trained.
        repository: "owner/name".
        private: whether a repository that is created can be seen by its owner alone.
        message: of the commit; "" is "Upload of NAME".
        revision: branch to upload to; None is "main".

    Returns:
        The address of the commit.

    Raises:
        RunError: a network is not trained yet.
        HubError: no such name, no access, no connection.
    """
    with tempfile.TemporaryDirectory() as folder:
        stage(run, Path(folder), card, repository)
        try:
            api = HfApi(library_name="vqvae2")
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=message or f"Upload of {run.folder.name}",
                revision=revision,
                delete_patterns=HUB_FILES,
            )
        except (OSError, ValueError, RuntimeError, HTTP_ERROR) as error:
            raise HubError(f"cannot upload to {repository}: {_advice(error)}") from error
    return str(done.commit_url)


def stage(run: StoredRun, target: Path, card: Card, repository: str) -> None:
    """Write what is shared of a run into a folder, which is then itself a run folder.

    Raises:
        RunError: a network is not trained yet.
        HubError: no such name.
        UserError: the folder cannot be made.
    """
    if repository.count("/") != 1:
        raise HubError(f"expected a Hub repository owner/name, found {repository!r}")
    missing = [name for name, done in run.done().items() if not done and name != "codes"]
    if missing:
        raise RunError(f"{run.folder} cannot be shared yet; not trained: {', '.join(missing)}")
    make_folder(target)
    for network in run.paths.networks(run.config.autoencoder.levels).values():
        if network.done():
            file = target / network.model.relative_to(run.paths.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(network.model, file)
    record = {key: value for key, value in run.record.items() if key not in ("command", "source_from_run")}
    if "source" in record:
        record["source"] = _public(str(record["source"]))
    if "imported" in record:
        record["imported"] = Path(str(record["imported"])).name
    config = run.config
    changes = {
        "data": config.data.model_copy(update={"labels": None, "image_root": None}),
        "train_autoencoder": _without_paths(config.train_autoencoder),
        "sharpen": _without_paths(config.sharpen),
        "train_prior": tuple(_without_paths(training) for training in config.train_prior),
    }
    write_config(target, record, config.model_copy(update=changes))
    write_text(target / "README.md", model_card(run, card, repository))


def _without_paths(training: TrainConfig) -> TrainConfig:
    """The settings of a training without paths of this machine."""
    places: dict[str, str] = {key: getattr(training, key) for key in PLACES if hasattr(training, key)}
    return training.model_copy(
        update={key: name if is_public(name) else Path(name).name for key, name in places.items()}
    )


def model_card(run: StoredRun, card: Card, repository: str) -> str:
    """The model card in Markdown, with the Hub's metadata on top: use, data, recipe, held-out figures, licence."""
    config, name = run.config, repository.split("/")[-1]
    meta = {
        "license": card.license,
        "library_name": "vqvae2",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["vqvae2", "vq-vae-2", "image-generation", "vector-quantization"],
    }
    grids = " + ".join(f"{h}x{w}" for h, w in config.geometry.grids)
    classes = f" Classes ({len(run.classes)}): {listed(run.classes)}." if run.classes else " No classes."
    kinds = ", ".join(f"level {i}: {level.kind}" for i, level in enumerate(config.prior.levels))
    height, width = config.data.shape
    lines = [
        f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n",
        f"# {card.title or name}\n",
        (
            f"A VQ-VAE-2 (Razavi et al. 2019) of images of {height}x{width} px with {config.data.channels} channels: "
            f"{config.autoencoder.levels} levels of codes ({grids}) of {', '.join(map(str, config.geometry.vocabulary))} "
            f"codes each, {config.geometry.bits / 8:.0f} bytes per image without a prior.\n"
        ),
        (
            f'```python\nimport vqvae2\n\nrun = vqvae2.load("{repository}")\n'
            "images = run.sample(16, seed=0)  # [16, C, H, W] in [-1, 1]\n"
            'codes = run.encode(images)  # of files: run.encode(run.load_images(["a.png"]))\n```\n'
        ),
        f"On the command line: `vqvae2 sample {repository} --n 16 --out samples`.\n",
        f"## Data\n\n{_data(run)}{classes}{f' {card.data}' if card.data else ''}\n",
        (
            "## Recipe\n\n"
            f"Autoencoder: {config.train_autoencoder.steps} steps of {config.train_autoencoder.batch} images at most. "
            f"Priors ({kinds}): {', '.join(str(prior.steps) for prior in config.train_prior)} steps at most; the weights "
            "with the best held-out score are kept. Every setting is in `config.yaml`.\n"
        ),
        f"## Measured on held-out images\n\n{figure_table(run)}\n",
        (
            f"## Files\n\nWeights are safetensors, settings are YAML; nothing here is executed when the model is loaded. "
            f"Licence of the weights: {card.license}.\n"
        ),
    ]
    return "\n".join(lines)


def figure_table(run: StoredRun) -> str:
    """A Markdown table of the figures that the run measured on held-out images."""
    rows = ["| figure | value |", "| --- | --- |"]
    stage1 = run.figures()
    if "heldout_psnr" in stage1:
        rows.append(
            f"| held-out PSNR (of the mean squared error, peak 2) | {stage1['heldout_psnr']:.2f} dB |"
        )
    if sharp := run.figures("sharpen"):
        rows += [
            f"| the same with the sharpened decoder | {sharp['heldout_psnr']:.2f} dB |",
            f"| sharpness of held-out reconstructions (originals 1), sharpened | {sharp['heldout_sharpness']:.3f} |",
            f"| the same with the plain decoder | {sharp['heldout_sharpness_plain']:.3f} |",
        ]
    for level, (height, width) in enumerate(run.config.geometry.grids):
        prior = run.figures(level)
        if f"heldout_usage_{level}" in stage1:
            usage = stage1[f"heldout_usage_{level}"]
            rows.append(f"| level {level} ({height}x{width}): codes used by held-out images | {usage:.1%} |")
        if prior:
            rows += [
                f"| level {level}: bits per code, held out (uniform {prior['uniform_bits']:.0f}) | {prior['heldout_bits']:.3f} |",
                f"| level {level}: bits per code, training images | {prior['train_bits']:.3f} |",
            ]
    return "\n".join(rows)


def _data(run: StoredRun) -> str:
    """Where the images came from and how many there were, as far as the run knows."""
    source = _public(str(run.record.get("source", "unknown")))
    text = f"Trained on `{source}`"
    if run.paths.manifest.exists():
        store = open_store(run.paths.codes)
        text += f": codes of {len(store.train):,} training images (augmented copies counted), {len(store.heldout):,} held out"
    return f"{text}."


def _public(path: str) -> str:
    """What may be shown to others of where images are: of a path of this machine its last component, of an address elsewhere all but
    the name and password of a user.
    """
    protocol, mark, _ = path.partition("://")
    if mark and protocol.split("::")[-1] not in ("file", "local"):
        return re.sub(r"(?<=://)[^/]*@", "", path)
    local = bool(mark) or Path(path).is_absolute() or Path(path).exists() or path.startswith((".", "~"))
    return Path(path).name if path and local else path


def _advice(error: Exception) -> str:
    """What went wrong, on one line, with what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = " ".join((getattr(error, "server_message", None) or reason(error)).split())[:200]
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        return (
            f"{text.rstrip('.')}; `hf auth login`, or a token that may write there in HF_TOKEN, gives access"
        )
    return text
