"""Where a run is found by its name: a folder, a model shipped in the package, or a repository of the Hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from vqvae2.files.run_folder import RunError, RunFolder, run_path

HTTP_ERROR: Any = HfHubHTTPError.__mro__[1]
"""Every error of the Hub's HTTP client, whose package differs between versions."""
HUB_FILES = ["config.yaml", "README.md", "*/model.safetensors"]
"""What is uploaded to and downloaded from a Hub repository that holds a run; `*` also matches `/`."""


def zoo() -> list[str]:
    """Names of the models shipped in the package."""
    folder = resources.files("vqvae2") / "zoo"
    models = folder.iterdir() if folder.is_dir() else ()
    return sorted(item.name for item in models if (item / "config.yaml").is_file())


def names_hub(name: str) -> bool:
    """Whether a name that is no place on this machine is looked for on the Hub, as `owner/name`."""
    return name.count("/") == 1 and not name.startswith((".", "/")) and not Path(name).parent.is_dir()


def is_public(name: str) -> bool:
    """Whether a name is that of a model of the package or of a repository of the Hub, and of no place on this machine."""
    return not Path(name).exists() and (name in zoo() or names_hub(name))


def public_name(folder: Path) -> str | None:
    """What a run folder is if it is not the user's own, so that no command writes into it unasked: None if it is.

    A model of the package lies where pip replaces everything, and one of the Hub in the Hub's cache, as REPO/snapshots/COMMIT.
    """
    found = folder.resolve()
    if found.parent == _of_package(found.name).parent.resolve():
        return f"the model {found.name} of the package"
    kind, _, repository = found.parent.parent.name.partition("--")
    if found.parent.name == "snapshots" and kind == "models":
        return f"the model {repository.replace('--', '/')} of the Hub"
    return None


def _of_package(name: str) -> Path:
    return Path(str(resources.files("vqvae2") / "zoo" / name))


def no_run(folder: Path) -> RunError:
    """The error about a folder that is no run folder, where a command takes nothing else."""
    name = str(folder)
    hint = (
        f"; copy the model of the package, {_of_package(name)}, to a folder of your own"
        if name in zoo()
        else ""
    )
    return RunError(f"{name} is no run folder: it has no config.yaml{hint}")


def find_run(name: str | Path, **hub: Any) -> Path:
    """The folder of a run; one on the Hub is downloaded first, into the Hub's cache.

    Args:
        name: a run folder, the name of a model of the zoo, or a Hub repository `owner/name` that holds a run folder.
        hub: further arguments of `huggingface_hub.snapshot_download`, such as revision and token.

    Raises:
        RunError: nothing of that name.
    """
    path = run_path(name)
    if RunFolder(path).exists():
        return path
    text = str(name)
    if text in zoo():
        return _of_package(text)
    if path.exists():
        raise no_run(path)
    if names_hub(text):
        try:
            downloaded = Path(snapshot_download(text, allow_patterns=HUB_FILES, **hub))
        except (OSError, ValueError, HTTP_ERROR) as error:
            raise RunError(
                f"no folder {text}, and it cannot be fetched from the Hub: {' '.join(str(error).split())[:200]}"
            ) from None
        if not RunFolder(downloaded).exists():
            raise RunError(f"the Hub repository {text} holds no run: it has no config.yaml")
        return downloaded
    known = ", ".join(zoo()) or "none"
    raise RunError(
        f"no run {text}: expected a run folder, a model of the package ({known}) or a Hub id owner/name"
    )
