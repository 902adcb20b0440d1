"""Tensor and JSON files: round trips, damage that is noticed, and writing that never leaves half a file."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from vqvae2.files import atomic, tensor_file
from vqvae2.files.atomic import FileError, read_json, write_atomic, write_json, write_text
from vqvae2.files.temporary import sweep, temporary_name
from vqvae2.files.tensor_file import (
    digest,
    load_tensors,
    load_weights,
    pack_optimizer,
    save_tensors,
    unpack_optimizer,
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
SHAPES: list[tuple[int, ...]] = [(), (1,), (0,), (3, 0, 2), (2, 3, 4)]
SMALL = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1, 2], dtype=torch.int16)}


class KillError(BaseException):
    """Not an `Exception`, so that no ordinary handler catches it, like Ctrl-C."""


def values(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Random values of a type, also negative ones where the type has them."""
    raw = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(seed))
    return (raw - 50).to(dtype) if dtype.is_floating_point or dtype.is_signed else raw.to(dtype)


def stored(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the metadata after writing them to a file and reading it."""
    save_tensors(folder / "a.safetensors", tensors)
    return load_tensors(folder / "a.safetensors")


def message(path: Path) -> str:
    """The message with which a file is refused: one line that names the file."""
    with pytest.raises(FileError) as caught:
        load_tensors(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def only(folder: Path, *names: str) -> bool:
    """Whether the folder holds these files and no other, hidden ones included."""
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


# --- tensors ---


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_shape_comes_back(dtype: torch.dtype, seed: int, tmp_path: Path) -> None:
    tensors = {str(shape): values(dtype, shape, seed) for shape in SHAPES}
    loaded, metadata = stored(tmp_path, tensors)
    assert metadata == {}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name], tensor)


def test_bits_come_back_not_only_values(tmp_path: Path) -> None:
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45, 3.4e38])
    loaded, _ = stored(tmp_path, {"odd": odd, "small": odd.bfloat16()})
    assert torch.equal(loaded["odd"].view(torch.int32), odd.view(torch.int32))
    assert torch.equal(loaded["small"].view(torch.int16), odd.bfloat16().view(torch.int16))


def test_views_and_gradients_are_stored_as_what_they_show(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    weight = nn.Parameter(torch.ones(3))
    loaded, _ = stored(tmp_path, {"turned": whole.t()[1:3], "weight": weight, "every": whole[:, ::2]})
    assert torch.equal(loaded["turned"], whole.t()[1:3])
    assert torch.equal(loaded["every"], whole[:, ::2])
    assert not loaded["weight"].requires_grad


def test_metadata_and_digest_come_back(tmp_path: Path) -> None:
    saved = {"step": 3, "name": "ü\n\"'", "none": None, "list": [1, 2.5, {"deep": True}]}
    check = save_tensors(tmp_path / "new" / "folder" / "a", SMALL, saved)
    loaded, metadata = load_tensors(tmp_path / "new" / "folder" / "a")
    assert metadata == saved
    assert check == digest(loaded, json.dumps(saved))
    assert len(check) == 64
    assert stored(tmp_path, {}) == ({}, {})


def test_the_digest_depends_on_everything() -> None:
    """On names, types, shapes, single bytes and the text, but not on the order or the layout in memory."""
    base = {
        "a": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "b": torch.zeros(4),
        "c": torch.zeros(0, 2),
    }
    one_byte = base["a"].clone()
    one_byte.view(torch.uint8)[1, 5] += 1
    changed: list[tuple[dict[str, Tensor], str]] = [
        (base, ""),
        (base, "{}"),
        (base, "{ }"),
        ({"a2": base["a"], "b": base["b"], "c": base["c"]}, ""),
        ({"a": base["b"], "b": base["a"], "c": base["c"]}, ""),
        ({"a": base["a"], "b": base["b"]}, ""),
        (base | {"d": torch.zeros(0)}, ""),
        (base | {"a": base["a"].view(torch.float32)}, ""),
        (base | {"a": base["a"].reshape(3, 2)}, ""),
        (base | {"a": base["a"].reshape(6)}, ""),
        (base | {"a": one_byte}, ""),
        (base | {"b": -base["b"]}, ""),
        (base | {"c": torch.zeros(2, 0)}, ""),
        (base | {"c": torch.zeros(0, 2, dtype=torch.int64)}, ""),
        ({}, ""),
    ]
    loaded = [digest(tensors, text) for tensors, text in changed]
    assert len(set(loaded)) == len(loaded)
    assert digest(dict(reversed(base.items()))) == digest(base)
    assert digest(base | {"a": base["a"].t().contiguous().t()}) == digest(base)


# --- what is damaged ---


def test_truncated_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, SMALL, {"step": 1})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "damaged" in message(path)
    path.write_bytes(whole + b"\0")
    assert "damaged" in message(path)


def test_a_flipped_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A flip is harmless where it changes no content: in a few bytes of the header, such as the padding at its end."""
    path = tmp_path / "a.safetensors"
    save_tensors(path, SMALL, {"step": 1})
    whole = path.read_bytes()
    data = len(whole) - sum(tensor.numel() * tensor.element_size() for tensor in SMALL.values())
    refused, harmless = [], 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            loaded, metadata = load_tensors(path)
        except FileError as error:
            refused.append((position, str(error)))
            continue
        harmless += 1
        assert metadata == {"step": 1}
        assert loaded.keys() == SMALL.keys()
        assert all(torch.equal(loaded[name], SMALL[name]) for name in SMALL)
    assert all("\n" not in reason for _, reason in refused)
    behind = {position: reason for position, reason in refused if position >= data}
    assert [*behind] == [*range(data, len(whole))]
    assert all("was altered after it was saved" in reason for reason in behind.values())
    assert harmless < 20


def test_altered_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, SMALL, {"step": 1})
    path.write_bytes(path.read_bytes().replace(b": 1}", b": 2}"))
    assert "was altered after it was saved" in message(path)


def test_a_format_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, SMALL)
    path.write_bytes(path.read_bytes().replace(b'format\\": 1', b'format\\": q'))
    message(path)


def test_missing_foreign_and_newer_files(tmp_path: Path) -> None:
    assert message(tmp_path / "missing") == f"no weights at {tmp_path / 'missing'}"
    assert "no weights at" in message(tmp_path)
    path = tmp_path / "a"
    path.write_bytes(b"")
    assert "damaged" in message(path)
    path.write_text("hello\nworld\n" * 20)
    assert "damaged" in message(path)
    safetensors.torch.save_file(SMALL, path)  # of another program: no digest
    message(path)
    safetensors.torch.save_file(SMALL, path, {"format": str(atomic.FORMAT + 1)})
    assert "newer vqvae2" in message(path)


# --- writing ---


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        tensor_file.save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
        write_text(tmp_path / "a.txt", "text")
    finally:
        os.umask(old)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.safetensors", "a.txt")] == [0o640, 0o640]


def test_text_and_json(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.json"
    cases: list[Any] = [{"b": [1, 2.5, None, "ü€"], "a": {}}, [], "x", 3]
    for value in cases:
        write_json(path, value)
        assert read_json(path) == value
    assert path.read_bytes().endswith(b"\n")
    write_text(str(path), "ü€\n")
    assert path.read_bytes() == "ü€\n".encode()
    assert only(path.parent, "a.json")


@pytest.mark.parametrize("letter", ["a", "\u732b"])
def test_a_name_as_long_as_a_file_system_takes(
    letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 Chinese characters are 240 bytes; names that begin alike have temporary names of their own."""
    names = [letter * (250 // len(letter.encode()) - 1) + end for end in ("1", "2")]
    for name in names:
        atomic.write_text(tmp_path / name, name)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {name: name for name in names}
    first, second = (temporary_name(tmp_path / name) for name in names)
    assert first != second
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with monkeypatch.context() as other:
        other.setattr(os, "getpid", lambda: process.pid)
        left = temporary_name(tmp_path / names[0])
    left.touch()
    assert sweep(tmp_path) == [left]


def test_text_with_names_that_are_no_utf8(tmp_path: Path) -> None:
    """Python reads the Latin-1 name b"caf\\xe9" of a folder so, and a page that names it is written all the same."""
    atomic.write_text(tmp_path / "a.html", os.fsdecode(b"caf\xe9") + " \u00e9")
    assert atomic.read_text(tmp_path / "a.html") == "caf\\udce9 \u00e9"


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data in (None, b"", b"{", b'"\xff"', b"[1,\n2,\n"):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(FileError, match=r"cannot read .*a\.json: ") as caught:
            read_json(path)
        assert "\n" not in str(caught.value)


def test_json_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == 1
    assert only(tmp_path, "a.json")


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def refused(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def full_tensors(_: Any, path: Path, *__: Any) -> None:
    Path(path).write_bytes(b"half")
    raise safetensors.SafetensorError("I/O error:\nNo space left on device")


@pytest.mark.parametrize(
    ("where", "name", "fail", "reason"),
    [
        (os, "fsync", full, "No space left on device"),
        (Path, "mkdir", refused, "Permission denied"),
        (Path, "replace", refused, "Permission denied"),
        (safetensors.torch, "save_file", full_tensors, "I/O error: No space left on device"),
    ],
    ids=["full at the flush", "no folder", "no renaming", "full while writing"],
)
def test_a_full_disk_or_an_unwritable_folder_keeps_the_old_file(
    where: Any,
    name: str,
    fail: Callable[..., None],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, SMALL, {"step": 1})
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(where, name, fail)
        with pytest.raises(FileError) as caught:
            save_tensors(path, {"other": torch.ones(3)}, {"step": 2})
    assert str(caught.value) == f"cannot write {path}: {reason}; an earlier file is kept"
    assert path.read_bytes() == before
    assert only(tmp_path, path.name)
    save_tensors(path, SMALL, {"step": 3})
    assert load_tensors(path)[1] == {"step": 3}


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="cannot write") as caught:
        write_text(tmp_path / "file" / "a.txt", "x")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("kind", [KillError, KeyboardInterrupt, RuntimeError])
def test_a_kill_in_the_middle_keeps_the_old_file(kind: type[BaseException], tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def half(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("ne")
        assert (tmp_path / "a").read_text() == "old"
        raise kind

    with pytest.raises(kind):
        write_atomic(tmp_path / "a", half)
    assert (tmp_path / "a").read_text() == "old"
    assert only(tmp_path, "a")


def test_a_kill_at_the_flush_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is flushed before the file is renamed: killed between the two, the old file is still there."""

    def kill(_: int) -> None:
        raise KillError

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", kill)
    with pytest.raises(KillError):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert only(tmp_path, "a")


# --- models and optimizers ---


def test_weights_that_fit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
    a(torch.randn(5, 3))
    save_tensors(tmp_path / "a", a.state_dict())
    load_weights(b, load_tensors(tmp_path / "a")[0], tmp_path / "a")
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"0.weight": None, "1.bias": None}, r"at 0\.weight, expected \(4, 3\), found nothing"),
        ({"1.weight": torch.ones(2, 4), "1.bias": None}, r"at 1\.weight, expected \(2, 2\), found \(2, 4\)"),
        ({"0.bias": torch.ones(4, 1), "more": torch.ones(1)}, r"at 0\.bias, expected \(4,\), found \(4, 1\)"),
        ({"more": torch.ones(5), "most": torch.ones(1)}, r"at more, expected nothing, found \(5,\)"),
        ({"1.bias": None, "more": torch.ones(1)}, r"at 1\.bias, expected \(2,\), found nothing"),
        ({"1.bias": torch.tensor(1.0)}, r"at 1\.bias, expected \(2,\), found \(\)"),
    ],
)
def test_the_first_difference_is_named(change: dict[str, Tensor | None], expected: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(2, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {**net.state_dict(), **change}
    tensors = {name: value + 1 for name, value in state.items() if value is not None}
    with pytest.raises(FileError, match=f"^here does not fit the configuration: {expected}$"):
        load_weights(net, tensors, "here")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize(("amsgrad", "seed"), [(False, 0), (True, 1)])
def test_an_optimizer_continues_as_if_never_stopped(amsgrad: bool, seed: int, tmp_path: Path) -> None:
    """With two groups and a weight without gradient, saved and loaded: all later weights are equal to the last bit."""

    def build() -> tuple[nn.Module, torch.optim.AdamW]:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(7, 7))
        groups: list[dict[str, Any]] = [
            {"params": net[0].parameters(), "lr": 0.03},
            {"params": [*net[1:].parameters()]},
        ]
        return net, torch.optim.AdamW(groups, 0.1, (0.8, 0.9), weight_decay=0.2, amsgrad=amsgrad)

    def steps(net: nn.Module, optimizer: torch.optim.AdamW, numbers: range) -> None:
        for number in numbers:
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * seed + number))
            optimizer.param_groups[1]["lr"] = 0.1 / (1 + number)
            optimizer.zero_grad()
            net[1](net[0](x)).square().sum().backward()  # type: ignore[index]
            optimizer.step()

    whole, optimizer = build()
    steps(whole, optimizer, range(8))

    first, optimizer = build()
    steps(first, optimizer, range(5))
    save_tensors(tmp_path / "optimizer", pack_optimizer(optimizer))
    weights = {name: value.clone() for name, value in first.state_dict().items()}

    second, optimizer = build()
    second.load_state_dict(weights)
    unpack_optimizer(optimizer, load_tensors(tmp_path / "optimizer")[0])
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.1], "the settings stay"
    steps(second, optimizer, range(5, 8))
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name

    third, optimizer = build()  # without its state the optimizer makes other steps
    third.load_state_dict(weights)
    steps(third, optimizer, range(5, 8))
    assert not torch.equal(third.state_dict()["0.weight"], whole.state_dict()["0.weight"])


def test_an_optimizer_before_its_first_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert pack_optimizer(torch.optim.AdamW([weight], 0.5)) == {}
    optimizer = torch.optim.AdamW([weight], 0.1)
    unpack_optimizer(optimizer, {})
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_stored_digest_is_that_of_the_content(tmp_path: Path) -> None:
    """The digest is read without the tensors; a file without one is damaged."""
    tensors = {"a": torch.arange(6.0).view(2, 3)}
    digest = tensor_file.save_tensors(tmp_path / "x.safetensors", tensors, {"n": 1})
    assert tensor_file.stored_digest(tmp_path / "x.safetensors") == digest
    (tmp_path / "y.safetensors").write_bytes(b"short")
    for name, said in (("y", "is damaged"), ("none", "no weights at")):
        with pytest.raises(atomic.FileError, match=said):
            tensor_file.stored_digest(tmp_path / f"{name}.safetensors")
