"""Checkpoints of rosinality/vq-vae-2-pytorch in: the same codes and pixels, and nothing but tensors is ever read."""

from __future__ import annotations

import argparse
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

import vqvae2
from vqvae2.codes import Codes
from vqvae2.config.models import ConfigError
from vqvae2.config.overrides import read_yaml
from vqvae2.files import atomic, tensor_file
from vqvae2.files.run_folder import RunError
from vqvae2.run import load
from vqvae2.train.folder import model_file
from vqvae2.train.rosinality import RosinalityError, import_rosinality

Command = Callable[..., Any]
State = dict[str, Tensor]
SMALL: dict[str, int] = {"channel": 16, "residual": 8, "blocks": 2, "dim": 8, "codes": 24, "colours": 3}


def stack_names(first: int, blocks: int) -> list[str]:
    """The places of a stack's residual blocks in a `blocks` list."""
    return [str(first + block) for block in range(blocks)]


class Theirs:
    """Their network said again as functions over a state dict of their names, with random weights.

    Args:
        seed: of the weights; the codebooks are vectors that really occur, so that many codes are used.
    """

    def __init__(
        self,
        channel: int = 128,
        residual: int = 32,
        blocks: int = 2,
        dim: int = 64,
        codes: int = 512,
        colours: int = 3,
        seed: int = 0,
    ) -> None:
        self.blocks = blocks
        self.random = torch.Generator().manual_seed(seed)
        self.state: State = {}
        half = channel // 2
        self._weights("enc_b.blocks.0", half, colours, 4)
        self._weights("enc_b.blocks.2", channel, half, 4)
        self._weights("enc_b.blocks.4", channel, channel, 3)
        self._weights("enc_t.blocks.0", half, channel, 4)
        self._weights("enc_t.blocks.2", channel, half, 3)
        self._weights("dec_t.blocks.0", channel, dim, 3)
        self._weights("dec.blocks.0", channel, 2 * dim, 3)
        for name, first in (("enc_b", 5), ("enc_t", 3), ("dec_t", 1), ("dec", 1)):
            for place in stack_names(first, blocks):
                self._weights(f"{name}.blocks.{place}.conv.1", residual, channel, 3)
                self._weights(f"{name}.blocks.{place}.conv.3", channel, residual, 1)
        self._weights("quantize_conv_t", dim, channel, 1)
        self._weights("quantize_conv_b", dim, dim + channel, 1)
        self._weights(f"dec_t.blocks.{blocks + 2}", dim, channel, 4, transposed=True)
        self._weights("upsample_t", dim, dim, 4, transposed=True)
        self._weights(f"dec.blocks.{blocks + 2}", half, channel, 4, transposed=True)
        self._weights(f"dec.blocks.{blocks + 4}", colours, half, 4, transposed=True)
        pictures = self.pictures(8, colours, 64)
        features = self._encoder("enc_b", pictures, (0, 2), 4)
        coarse = self._conv("quantize_conv_t", self._encoder("enc_t", features, (0,), 2), 0)
        self._codebook("quantize_t", coarse, codes)
        e = self._nearest("quantize_t", coarse)[0]
        fine = self._conv("quantize_conv_b", torch.cat([self._hint(e), features], 1), 0)
        self._codebook("quantize_b", fine, codes)

    def pictures(self, count: int, colours: int, size: int) -> Tensor:
        """[count, colours, size, size] of noise of several scales, in [-1, 1]."""
        parts = [
            functional.interpolate(
                torch.randn(count, colours, size // f, size // f, generator=self.random), (size, size)
            )
            for f in (1, 4, 8, 16)
        ]
        return torch.stack(parts).sum(0).mul(0.5).clamp(-1, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse and fine codes."""
        features = self._encoder("enc_b", images, (0, 2), 4)
        coarse = self._conv("quantize_conv_t", self._encoder("enc_t", features, (0,), 2), 0)
        e, top = self._nearest("quantize_t", coarse)
        fine = self._conv("quantize_conv_b", torch.cat([self._hint(e), features], 1), 0)
        return top, self._nearest("quantize_b", fine)[1]

    def decode(self, top: Tensor, bottom: Tensor) -> Tensor:
        """Codes to images, not clipped."""
        coarse, fine = self._look_up("quantize_t", top), self._look_up("quantize_b", bottom)
        x = self._conv("dec.blocks.0", torch.cat([self._up("upsample_t", coarse), fine], 1), 1)
        x = self._stack("dec", x, 1)
        x = functional.relu(self._up(f"dec.blocks.{self.blocks + 2}", x))
        return self._up(f"dec.blocks.{self.blocks + 4}", x)

    def _weights(self, name: str, out: int, into: int, kernel: int, transposed: bool = False) -> None:
        shape = (into, out, kernel, kernel) if transposed else (out, into, kernel, kernel)
        fan = into * kernel * kernel / (4 if transposed else 1)
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.random) * (1.6 / fan) ** 0.5
        self.state[f"{name}.bias"] = torch.randn(out, generator=self.random) * 0.1

    def _codebook(self, name: str, z: Tensor, codes: int) -> None:
        vectors = z.permute(1, 0, 2, 3).flatten(1)  # [D, N]
        drawn = torch.randperm(vectors.shape[1], generator=self.random)[:codes]
        size = torch.rand(codes, generator=self.random) * 50
        self.state[f"{name}.embed"] = vectors[:, drawn].contiguous()
        self.state[f"{name}.cluster_size"] = size
        self.state[f"{name}.embed_avg"] = vectors[:, drawn] * size

    def _conv(self, name: str, x: Tensor, padding: int, stride: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.conv2d(x, weight, bias, stride=stride, padding=padding)

    def _up(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return functional.conv_transpose2d(x, weight, bias, stride=2, padding=1)

    def _stack(self, name: str, x: Tensor, first: int) -> Tensor:
        for place in stack_names(first, self.blocks):
            y = self._conv(f"{name}.blocks.{place}.conv.1", functional.relu(x), 1)
            x = x + self._conv(f"{name}.blocks.{place}.conv.3", functional.relu(y), 0)
        return functional.relu(x)

    def _encoder(self, name: str, x: Tensor, halving: tuple[int, ...], last: int) -> Tensor:
        for place in halving:
            x = functional.relu(self._conv(f"{name}.blocks.{place}", x, 1, 2))
        return self._stack(name, self._conv(f"{name}.blocks.{last}", x, 1), last + 1)

    def _hint(self, e: Tensor) -> Tensor:
        x = self._stack("dec_t", self._conv("dec_t.blocks.0", e, 1), 1)
        return self._up(f"dec_t.blocks.{self.blocks + 2}", x)

    def _nearest(self, name: str, z: Tensor) -> tuple[Tensor, Tensor]:
        embed = self.state[f"{name}.embed"]
        flat = z.permute(0, 2, 3, 1).flatten(0, 2)
        indices = torch.cdist(flat.double(), embed.T.double()).argmin(1)
        indices = indices.reshape(z.shape[0], *z.shape[2:])
        return self._look_up(name, indices), indices

    def _look_up(self, name: str, indices: Tensor) -> Tensor:
        return self.state[f"{name}.embed"].T[indices].permute(0, 3, 1, 2)


@pytest.fixture
def theirs() -> Theirs:
    """A small network of theirs."""
    return Theirs(**SMALL)


@pytest.fixture
def file(tmp_path: Path, theirs: Theirs) -> Path:
    """Its checkpoint."""
    path = tmp_path / "vqvae_001.pt"
    torch.save(theirs.state, path)
    return path


def agree(theirs: Theirs, run: Path, colours: int = 3, size: int = 64) -> None:
    """Their codes exactly in float64, where rounding breaks no ties; pixels to 1e-4 in the run's float32."""
    images = theirs.pictures(3, colours, size)
    model = load(run, "cpu").autoencoder
    top, bottom = theirs.encode(images)
    codes = model.encode(images)
    expected = theirs.decode(top, bottom)
    assert expected.std() > 0.1
    torch.testing.assert_close(model.decode(Codes((top, bottom))), expected.clamp(-1, 1), rtol=0, atol=1e-4)
    single = theirs.state
    theirs.state = {name: tensor.double() for name, tensor in single.items()}
    precise = Codes(theirs.encode(images.double()))
    found = model.double().encode(images.double())
    theirs.state = single
    for level in range(2):
        assert int(precise.levels[level].flatten().bincount().count_nonzero()) > 5
        assert torch.equal(found.levels[level], precise.levels[level])
        assert (codes.levels[level] != precise.levels[level]).float().mean() < 0.01


def one_line(command: Command, *arguments: object) -> str:
    """What a refused command says: one line, exit code 2."""
    said = command("import", "rosinality", *arguments)
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("vqvae2: ")
    assert said.err.count("\n") == 1
    return str(said.err)


# --- the same network ---


@pytest.mark.parametrize("sizes", [
    {"dim": 16, "codes": 64},
    {"channel": 64, "residual": 16, "blocks": 1, "dim": 16, "codes": 32, "colours": 1},
    {"channel": 16, "residual": 5, "blocks": 3, "dim": 16, "codes": 16},
    {"channel": 16, "blocks": 0, "dim": 8, "codes": 20, "colours": 4},
], ids=str)  # fmt: skip
def test_codes_and_pixels_are_theirs(tmp_path: Path, sizes: dict[str, int]) -> None:
    theirs = Theirs(**sizes)
    torch.save(theirs.state, tmp_path / "x.pt")
    config = import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    defaults = {"channel": 128, "residual": 32, "blocks": 2, "colours": 3}
    found = config.autoencoder
    assert {
        "channel": found.hidden,
        "residual": found.residual,
        "blocks": found.blocks,
        "dim": found.code_dim,
        "codes": found.codes[1],
        "colours": found.channels,
    } == defaults | sizes
    assert config.data.channels == found.channels
    agree(theirs, tmp_path / "run", found.channels)


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    lambda state: {"state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}},
    lambda state: {"model": state},
    lambda state: {"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": state},
    lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}},
    lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    lambda state: {name: tensor.double() for name, tensor in state.items()},
], ids=["module", "compiled", "wrapped and compiled", "model", "state_dict", "net and module", "parameters", "double"])  # fmt: skip
def test_prefixes_and_wrappings(tmp_path: Path, theirs: Theirs, wrap: Callable[[State], Any]) -> None:
    torch.save(wrap(theirs.state), tmp_path / "x.pt")
    import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    agree(theirs, tmp_path / "run")


def test_files_of_old_torch(tmp_path: Path, theirs: Theirs) -> None:
    torch.save(theirs.state, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    agree(theirs, tmp_path / "run")


def test_statistics_are_theirs(tmp_path: Path, file: Path, theirs: Theirs) -> None:
    import_rosinality(file, tmp_path / "run", size=64)
    for quantizer, name in zip(
        load(tmp_path / "run", "cpu").autoencoder.quantizers, ("quantize_t", "quantize_b"), strict=True
    ):
        assert torch.equal(quantizer.embeddings, theirs.state[f"{name}.embed"].T)
        assert 1 - quantizer.decay ** int(quantizer.counter) == 1
        assert torch.equal(quantizer.ema_count, theirs.state[f"{name}.cluster_size"])
        assert torch.equal(quantizer.ema_sum, theirs.state[f"{name}.embed_avg"].T)
        share = quantizer.ema_count / quantizer.ema_count.sum()
        torch.testing.assert_close(quantizer.mean_code(), share @ quantizer.embeddings)


def test_a_network_that_never_learned_has_a_mean_code(tmp_path: Path, theirs: Theirs) -> None:
    for letter in "tb":
        theirs.state[f"quantize_{letter}.cluster_size"].zero_()
    torch.save(theirs.state, tmp_path / "x.pt")
    import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    for quantizer in load(tmp_path / "run", "cpu").autoencoder.quantizers:
        torch.testing.assert_close(quantizer.mean_code(), quantizer.embeddings.mean(0))


def test_going_on_with_their_averages(tmp_path: Path, file: Path, theirs: Theirs) -> None:
    """One update of ours from the imported statistics is one of theirs."""
    import_rosinality(file, tmp_path / "run", size=64)
    quantizer = load(tmp_path / "run", "cpu").autoencoder.quantizers[0].train()
    before = quantizer.embeddings.clone()
    z = torch.randn(200, before.shape[1], generator=torch.Generator().manual_seed(1))
    indices = quantizer(z).encoding_indices
    hot = functional.one_hot(indices, len(before)).float()
    size = theirs.state["quantize_t.cluster_size"] * 0.99 + hot.sum(0) * 0.01
    total = theirs.state["quantize_t.embed_avg"] * 0.99 + (z.T @ hot) * 0.01
    smooth = (size + 1e-5) / (size.sum() + len(size) * 1e-5) * size.sum()
    torch.testing.assert_close(quantizer.embeddings, (total / smooth).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_eight_bits(tmp_path: Path, theirs: Theirs, kind: str) -> None:
    """They are read as the numbers that they are."""
    if not hasattr(torch, kind):
        pytest.skip("needs torch 2.7")
    stored = {name: tensor.to(getattr(torch, kind)) for name, tensor in theirs.state.items()}
    torch.save(stored, tmp_path / "x.pt")
    if not all(tensor.float().isfinite().all() for tensor in stored.values()):
        with pytest.raises(RosinalityError, match="not finite"):
            import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
        return
    theirs.state = {name: tensor.float() for name, tensor in stored.items()}
    import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    found = load(tmp_path / "run", "cpu").autoencoder.quantizers[0].embeddings
    assert torch.equal(found, theirs.state["quantize_t.embed"].T)


def test_a_small_file_cannot_stand_for_many_numbers(tmp_path: Path, theirs: Theirs) -> None:
    """Expanded, and shared by many names: 16 GB otherwise."""
    name = "dec.blocks.0.weight"
    one = torch.zeros(1)
    for odd in (
        {name: one.expand(2**16, 2**16)},
        {f"x.{i}": torch.zeros(2**20) for i in range(1)} | {f"y.{i}": one.expand(2**20) for i in range(99)},
    ):
        torch.save({**theirs.state, **odd}, tmp_path / "x.pt")
        with pytest.raises(RosinalityError, match="stands for more numbers than the file holds"):
            import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    shared = torch.zeros(2**20)
    torch.save({**theirs.state, **{f"x.{i}": shared for i in range(50)}}, tmp_path / "x.pt")
    with pytest.raises(RosinalityError, match="stands for more numbers than the file holds"):
        import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)
    assert not (tmp_path / "run").exists()


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path, file: Path) -> None:
    with (
        zipfile.ZipFile(file) as source,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for member in source.namelist():
            target.writestr(member, source.read(member))
    with pytest.raises(RosinalityError, match="is compressed"):
        import_rosinality(tmp_path / "x.pt", tmp_path / "run", size=64)


# --- the run folder ---


def test_the_command_and_what_follows(tmp_path: Path, file: Path, theirs: Theirs, command: Command) -> None:
    run, pictures = tmp_path / "run", tmp_path / "pictures"
    said = command("import", "rosinality", file, "--run", run, "--size", 32)
    assert (said.code, said.err) == (0, "")
    assert "8x8" in said.out
    assert f"vqvae2 train DATA --run {run}" in said.out
    loaded = vqvae2.load(run)
    assert loaded.config.data.size == 32
    assert loaded.done() == {
        "autoencoder": True,
        "codes": False,
        "prior level 0": False,
        "prior level 1": False,
    }
    agree(theirs, run, size=32)
    with pytest.raises(RunError, match="train DATA --run"):
        loaded.sample(1)

    pictures.mkdir()
    for number in range(10):
        values = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(values).save(pictures / f"{number}.png")
    said = command("reconstruct", run, pictures / "0.png", "--out", tmp_path / "out")
    assert said.code == 0
    assert (tmp_path / "out" / "0.png").is_file()
    said = command("inspect", run)
    assert (said.code, said.err) == (0, "")
    assert "4x4 grid, 24 codes" in said.out

    weights = model_file(run).read_bytes()
    small = (
        *("prior.levels.*.hidden=8", "prior.levels.*.residual=8", "prior.levels.*.heads=1"),
        *("prior.levels.*.layers=1", "prior.levels.*.output_layers=0", "prior.levels.*.condition_blocks=0"),
        *("train_prior.*.steps=2", "train_prior.*.batch=4", "train_prior.*.copies=1"),
    )
    settings = [part for setting in (*small, "data.flip=false") for part in ("--set", setting)]
    assert command("train", tmp_path / "no such", "--run", run, *settings).code == 2
    said = command("train", pictures, "--run", run, *settings)
    assert said.code == 0, said.err
    assert all(vqvae2.load(run).done().values())
    assert model_file(run).read_bytes() == weights
    assert vqvae2.load(run, "cpu").sample(1).shape == (1, 3, 32, 32)
    assert command("train", pictures, "--run", run).code == 0
    assert (
        "data.flip: False -> True" in command("train", pictures, "--run", run, "--set", "data.flip=true").err
    )
    said = command("train", file.parent, "--run", run)
    assert said.code == 2
    assert re.search("was trained on the images in .*, and found others in", said.err), said.err


def test_the_default_size_and_the_record(tmp_path: Path, file: Path, command: Command) -> None:
    said = command("import", "rosinality", file, "--run", tmp_path / "run", "--json")
    assert said.code == 0
    assert '"autoencoder": true' in said.out
    config = load(tmp_path / "run", "cpu").config
    assert config.data.size == 256
    assert config.geometry.grids == ((32, 32), (64, 64))
    record = read_yaml(tmp_path / "run" / "config.yaml")["run"]
    assert record["imported"] == str(file)
    assert "source" not in record


def test_a_trained_run_is_kept(file: Path, run: Path, command: Command) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "another --run" in one_line(command, file, "--run", run)
    (run / "config.yaml").unlink()
    assert "another --run" in one_line(command, file, "--run", run)
    assert all(
        path.read_bytes() == before[path] for path in before if path.name != "config.yaml" or path.exists()
    )


def test_a_run_in_training_is_kept(tmp_path: Path, file: Path, command: Command) -> None:
    tensor_file.save_tensors(tmp_path / "run" / "autoencoder" / "checkpoints" / "last.safetensors", {})
    assert "another --run" in one_line(command, file, "--run", tmp_path / "run")


def test_an_import_that_was_cut_off_is_done_again(
    tmp_path: Path, file: Path, theirs: Theirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise atomic.FileError("cannot write: no space left")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "save_tensors", full)
        with pytest.raises(atomic.FileError, match="no space"):
            import_rosinality(file, tmp_path / "run", size=64)
    assert not model_file(tmp_path / "run").exists()
    import_rosinality(file, tmp_path / "run", size=64)
    agree(theirs, tmp_path / "run")


def test_a_run_that_cannot_be_written(tmp_path: Path, file: Path, command: Command) -> None:
    (tmp_path / "run").write_text("a file")
    assert "cannot make the folder" in one_line(command, file, "--run", tmp_path / "run")


# --- what is refused ---


class Call:
    """Makes a call when unpickled."""

    def __init__(self, function: Callable[..., Any], argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_code_is_never_run(tmp_path: Path, theirs: Theirs, command: Command, new: bool) -> None:
    mark = tmp_path / "mark"
    evil = Call(os.mkdir, str(mark))
    for value in ({**theirs.state, "x": evil}, {"model": theirs.state, "args": evil}, evil):
        torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        said = one_line(command, tmp_path / "x.pt", "--run", tmp_path / "run")
        assert f"holds more than tensors ({os.mkdir.__module__}.mkdir)" in said
        assert "not opened" in said
    assert not mark.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("value", "name"), [
    (Call(eval, "1"), "eval"),
    (argparse.Namespace(lr=1), "argparse.Namespace"),
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
], ids=["eval", "arguments", "module"])  # fmt: skip
def test_what_is_no_tensor_is_named(tmp_path: Path, theirs: Theirs, value: Any, name: str) -> None:
    torch.save({"model": theirs.state, "x": value}, tmp_path / "x.pt")
    with pytest.raises(RosinalityError, match=rf"more than tensors \((builtins\.)?{re.escape(name)}\)"):
        import_rosinality(tmp_path / "x.pt", tmp_path / "run")


def test_damaged_files(tmp_path: Path, file: Path, command: Command) -> None:
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"hello world", b"\x80\x02]]]."):
        file.write_bytes(content)
        assert "is damaged, or not written by torch.save" in one_line(
            command, file, "--run", tmp_path / "run"
        )
    file.unlink()
    assert "no checkpoint" in one_line(command, file, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def without(state: State, name: str) -> State:
    """The state without one tensor."""
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(("change", "part"), [
    (lambda state: {"weight": torch.zeros(3)}, "has no tensor enc_b.blocks.0.weight"),
    (lambda state: {"a": {"b": state}}, "has no tensor enc_b.blocks.0.weight"),
    (lambda state: [*state.values()], "has no tensor enc_b.blocks.0.weight"),
    (lambda state: without(state, "quantize_t.embed"), "has no tensor quantize_t.embed"),
    (lambda state: without(state, "enc_b.blocks.4.weight"), "has no tensor enc_b.blocks.4.weight"),
    (lambda state: without(state, "dec.blocks.2.conv.3.bias"), "has no tensor dec.blocks.2.conv.3.bias"),
    (lambda state: without(state, "enc_t.blocks.4.conv.1.weight"), "has no tensor enc_t.blocks.4.conv.1.weight"),
    (lambda state: state | {"dec.blocks.9.weight": torch.zeros(1)}, "has an unexpected tensor dec.blocks.9.weight"),
    (lambda state: state | {"enc_t.blocks.0.bias": torch.zeros(9)}, "at enc_t.blocks.0.bias, expected the shape (8,), found (9,)"),
    (lambda state: state | {"quantize_b.embed": torch.zeros(24, 8)}, "at quantize_b.embed, expected the shape (8, 8"),
    (lambda state: state | {"quantize_t.embed": torch.zeros(8)}, "at quantize_t.embed, expected 2 axes"),
    (lambda state: state | {"upsample_t.bias": torch.zeros(8, dtype=torch.int64)}, "upsample_t.bias is no tensor of"),
    (lambda state: state | {"upsample_t.bias": 3}, "upsample_t.bias is no tensor of"),
    (lambda state: state | {"upsample_t.bias": torch.full((8,), float("nan"))}, "upsample_t.bias holds numbers that are not finite"),
    (lambda state: state | {"enc_b.blocks.0.weight": torch.zeros(8, 2, 4, 4)}, "images of 2 channels"),
])  # fmt: skip
def test_another_network(
    tmp_path: Path, theirs: Theirs, command: Command, change: Callable[[State], Any], part: str
) -> None:
    torch.save(change(theirs.state), tmp_path / "x.pt")
    said = one_line(command, tmp_path / "x.pt", "--run", tmp_path / "run")
    assert str(tmp_path / "x.pt") in said
    assert part in said
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_strides_do_not_divide(tmp_path: Path, file: Path, command: Command) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        import_rosinality(file, tmp_path / "run", size=100)
    assert "multiples of 8" in one_line(command, file, "--run", tmp_path / "run", "--size", 100)
    with pytest.raises(RosinalityError, match="no checkpoint"):
        import_rosinality(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_help(command: Command) -> None:
    said = command("import", "rosinality", "--help")
    assert (said.code, said.err) == (0, "")
    assert all(part in said.out for part in ("CHECKPOINT", "--run", "--size", "256"))
    assert command("import").code == 2
