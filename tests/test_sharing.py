"""Runs on the Hub: what is uploaded, what the card says, what is loaded, and what happens without access or network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqvae2.autoencoder.perceptual import PerceptualDistance, PerceptualError
from vqvae2.config.overrides import read_yaml
from vqvae2.files.locate import find_run
from vqvae2.files.run_folder import RunError
from vqvae2.run import Run
from vqvae2.sharing import Card, HubError, model_card, push, stage
from vqvae2.train.stored_run import StoredRun

sys.path.append(str(Path(__file__).parent))

from hub_server import TOKEN, Hub, Repository, serving

WEIGHTS = [f"{name}/model.safetensors" for name in ("autoencoder", "prior/level-0", "prior/level-1")]
SHARED = ["README.md", *WEIGHTS[:1], "config.yaml", *WEIGHTS[1:]]


def client(hub: Hub, home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which takes `hub` for the Hub and keeps its cache in `home`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-W", "ignore", "-m", "vqvae2", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def drawn(folder: Path) -> list[bytes]:
    """The samples in a folder."""
    return [file.read_bytes() for file in sorted(folder.glob("[0-9]*.png"))]


def test_a_private_run_is_pushed_and_drawn_from_elsewhere_and_then_without_a_network(
    trained: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    home, name = tmp_path / "home", "me/pictures"
    upload = ("push", trained, name, "--license", "mit", "--private")
    assert command("sample", trained, "--n", 2, "--out", tmp_path / "own").code == 0
    with serving() as hub:
        done = client(hub, home, *upload, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{hub.url}/{name}/commit/")
        assert hub.repositories[name].private
        assert sorted(hub.repositories[name].files) == SHARED
        again = client(hub, home, *upload, HF_TOKEN=TOKEN)
        assert again.returncode == 0, again.stderr
        assert sorted(hub.repositories[name].files) == SHARED

        stranger = client(hub, tmp_path / "other", "sample", name, "--n", 2, "--out", tmp_path / "no")
        assert stranger.returncode == 2
        assert f"no folder {name}" in stranger.stderr
        assert len(stranger.stderr.splitlines()) == 1
        assert not (tmp_path / "no").exists()

        done = client(hub, home, "sample", name, "--n", 2, "--out", tmp_path / "there", HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
    done = client(hub, home, "sample", name, "--n", 2, "--out", tmp_path / "cached")  # the server is gone
    assert done.returncode == 0, done.stderr
    assert drawn(tmp_path / "own") == drawn(tmp_path / "there") == drawn(tmp_path / "cached") != []


def test_a_repository_without_a_run_is_named(tmp_path: Path) -> None:
    with serving() as hub:
        hub.repositories["me/empty"] = Repository(private=False, files={"README.md": b"nothing yet"})
        done = client(hub, tmp_path, "inspect", "me/empty", HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert "the Hub repository me/empty holds no run" in done.stderr
    assert str(tmp_path) not in done.stderr


def test_a_server_that_breaks_off_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the weights of a perceptual distance are read."""
    with serving() as hub:
        hub.closing = True
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two attempts
        with pytest.raises(RunError, match="cannot be fetched from the Hub"):
            find_run("me/pictures")
        with pytest.raises(PerceptualError, match="the Hub gave none"):
            PerceptualDistance.read("me/vgg")


def test_without_a_token_the_error_says_how_to_get_one(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
        with pytest.raises(HubError, match="hf auth login") as error:
            push(StoredRun(trained), "me/pictures", Card("mit"))
        assert "\n" not in str(error.value)
        assert hub.repositories == {}


def test_what_is_shared_is_a_run_without_images_and_without_paths_of_this_machine(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    run = StoredRun(trained)
    run.config = run.config.model_copy(
        update={
            "data": run.config.data.model_copy(
                update={"labels": str(tmp_path / "labels.csv"), "image_root": "../../clients/x/faces"}
            ),
            "sharpen": run.config.sharpen.model_copy(update={"perceptual_weights": str(tmp_path / "vgg.st")}),
            "train_prior": tuple(
                training.model_copy(update={"start": str(tmp_path / "before")})
                for training in run.config.train_prior
            ),
        }
    )
    run.record |= {"source_from_run": "../../clients/x/faces", "imported": str(tmp_path / "old.pt")}
    stage(run, tmp_path / "shared", Card("mit"), "me/pictures")
    files = [file for file in (tmp_path / "shared").rglob("*") if file.is_file()]
    assert sorted(file.relative_to(tmp_path / "shared").as_posix() for file in files) == SHARED
    for file in files:
        assert str(pictures.parent).encode() not in file.read_bytes(), file
        assert str(tmp_path).encode() not in file.read_bytes(), file
        assert b"clients" not in file.read_bytes(), file
    record = read_yaml(tmp_path / "shared" / "config.yaml")["run"]
    assert record["source"] == pictures.name
    assert record["imported"] == "old.pt"
    assert "command" not in record
    assert Run(tmp_path / "shared", "cpu").digests() == Run(trained, "cpu").digests()


@pytest.mark.parametrize(
    ("source", "shared"),
    [
        ("https://me:se@cret@host/a/train-{0..3}.tar", "https://host/a/train-{0..3}.tar"),
        ("simplecache::https://me:secret@host/train.tar", "simplecache::https://host/train.tar"),
        ("hf://datasets/owner/name@main/train-*.tar", "hf://datasets/owner/name@main/train-*.tar"),
        ("filecache::file:///home/me/secret/train.tar", "train.tar"),
        ("owner/pictures", "owner/pictures"),
    ],
)
def test_where_the_images_are_is_shared_without_passwords_and_local_paths(
    source: str, shared: str, trained: Path, tmp_path: Path
) -> None:
    run = StoredRun(trained)
    run.record |= {"source": source, "imported": "secret/old.pt"}
    stage(run, tmp_path / "shared", Card("mit"), "me/pictures")
    record = read_yaml(tmp_path / "shared" / "config.yaml")["run"]
    assert (record["source"], record["imported"]) == (shared, "old.pt")
    assert f"`{shared}`" in (tmp_path / "shared" / "README.md").read_text()
    assert "secret" not in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.parametrize(
    ("start", "shared"),
    [
        ("emoji64", "emoji64"),
        ("owner/name", "owner/name"),
        ("clients/x/before", "before"),
        ("here/before", "before"),
    ],
)
def test_of_a_start_only_what_others_can_find_is_shared_whole(
    start: str, shared: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    run = StoredRun(trained)
    first = run.config.train_autoencoder.model_copy(update={"start": start, "perceptual_weights": start})
    run.config = run.config.model_copy(update={"train_autoencoder": first})
    stage(run, tmp_path / "shared", Card("mit"), "me/pictures")
    settings = read_yaml(tmp_path / "shared" / "config.yaml")["train_autoencoder"]
    assert (settings["start"], settings["perceptual_weights"]) == (shared, shared)


def test_a_folder_that_cannot_be_made_is_one_line(
    trained: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    (tmp_path / "file").touch()
    said = command("push", trained, "me/pictures", "--license", "mit", "--dry-run", tmp_path / "file" / "out")
    assert said.code == 2
    assert "cannot make the folder" in said.err


def test_the_sharpened_decoder_is_shared_too(sharpened: Path, tmp_path: Path) -> None:
    stage(StoredRun(sharpened), tmp_path / "shared", Card("mit"), "me/pictures")
    own, shared = Run(sharpened, "cpu"), Run(tmp_path / "shared", "cpu")
    assert shared.decoder_name() == "sharp"
    assert own.sample(2).equal(shared.sample(2))


def test_the_card_is_made_from_the_run(trained: Path) -> None:
    run = StoredRun(trained)
    card = model_card(run, Card("cc-by-4.0", "Drawn by a program, CC0."), "me/pictures")
    _, meta, text = card.split("---\n", 2)
    assert yaml.safe_load(meta)["license"] == "cc-by-4.0"
    assert yaml.safe_load(meta)["library_name"] == "vqvae2"
    for part in (
        *(
            "# pictures",
            'vqvae2.load("me/pictures")',
            "16x16 px",
            "Blue sky, disc, stripes",
            "Drawn by a program, CC0.",
        ),
        *(
            "60 steps of 8 images",
            "level 0: pixelcnn",
            f"{run.figures()['heldout_psnr']:.2f} dB",
            "cc-by-4.0",
        ),
    ):
        assert part in text
    assert f"{run.figures(1)['heldout_bits']:.3f}" in text


def test_the_licence_is_asked_for(trained: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    said = command("push", trained, "me/pictures", "--dry-run", tmp_path / "out")
    assert said.code == 2
    assert "--license" in said.err
    said = command("push", trained, "pictures", "--dry-run", tmp_path / "out", "--license", "mit")
    assert (said.code, said.err) == (2, "vqvae2: expected a Hub repository owner/name, found 'pictures'\n")
    said = command("push", trained, "me/pictures", "--dry-run", tmp_path / "out", "--license", "mit")
    assert said.code == 0
    assert "what would be uploaded to me/pictures; nothing was" in said.out
    assert (tmp_path / "out" / "README.md").is_file()
    assert command("push", trained, "me/x", "--dry-run", tmp_path / "out", "--license", "mit").code == 2


@pytest.mark.parametrize("name", ["pictures", "a/b/c", "me/", "me/with space", ""])
def test_names_that_no_repository_has(name: str, trained: Path) -> None:
    with pytest.raises(HubError) as error:
        push(StoredRun(trained), name, Card("mit"))
    assert "\n" not in str(error.value)


def test_a_half_trained_run_is_not_shared(half: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be shared yet; not trained: prior level 1"):
        stage(StoredRun(half), tmp_path / "shared", Card("mit"), "me/pictures")
    assert not (tmp_path / "shared").exists()


def test_from_pretrained_takes_the_arguments_of_the_hub(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **arguments: Any) -> str:
        asked.update(arguments, name=name)
        return str(trained)

    monkeypatch.setattr("vqvae2.files.locate.snapshot_download", snapshot_download)
    run = Run.from_pretrained("me/pictures", "cpu", revision="v2", token="t", local_files_only=True)
    assert run.folder == trained
    assert (asked["name"], asked["revision"], asked["token"], asked["local_files_only"]) == (
        *("me/pictures", "v2", "t", True),
    )
    assert Run.from_pretrained(trained).folder == trained


def test_push_to_hub(trained: Path) -> None:
    with pytest.raises(HubError, match="owner/name"):
        Run(trained, "cpu").push_to_hub("pictures", license="mit")
