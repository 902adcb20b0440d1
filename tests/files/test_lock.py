"""One command at a time writes into a folder; a lock whose process is gone blocks nobody; leftovers are removed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vqvae2.files import lock as lock_module
from vqvae2.files.lock import NAME, LockError, locked, locks, still_locked
from vqvae2.files.process import Process, host
from vqvae2.files.temporary import sweep, temporary_name

OWN = Process.own()
GONE = 2**22 + 7  # no process has this number: above the largest that Linux gives


def leave(folder: Path, owner: Process | str, age: float = 0.0) -> Path:
    """A lock file as another process would have left it."""
    folder.mkdir(exist_ok=True)
    file = folder / NAME
    file.write_text(owner if isinstance(owner, str) else json.dumps(owner.to_json()))
    os.utime(file, (time.time() - age, time.time() - age))
    return file


def elsewhere(pid: int = 7) -> Process:
    """A process of another machine."""
    return replace(OWN, host="another-machine", pid=pid)


@pytest.fixture
def other() -> Any:
    """A living process of this machine."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.communicate(b"\n", timeout=30)


def test_a_process_knows_itself_and_is_written_down() -> None:
    assert Process.from_json(json.loads(json.dumps(OWN.to_json()))) == OWN
    assert OWN.near()
    assert OWN.running()
    assert not replace(OWN, pid=GONE).running()
    assert not replace(OWN, started=OWN.started - 1000).running(), "another process once had this number"
    assert not replace(OWN, space="pid:[1]").near(), "a container with the same host name"
    for damaged in (None, [], {}, {**OWN.to_json(), "pid": "7"}, {"host": "a"}, "x"):
        assert Process.from_json(damaged) is None


def test_the_folder_is_made_and_an_empty_one_removed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with locked(folder) as lock:
        assert Process.from_json(json.loads((folder / NAME).read_text())) == OWN
        assert lock.held
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "result").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_second_command_is_refused_with_host_and_process(tmp_path: Path, other: Any) -> None:
    import psutil

    owner = replace(OWN, pid=other.pid, started=psutil.Process(other.pid).create_time())
    file = leave(tmp_path / "run", owner)
    before = file.read_text()
    with (
        pytest.raises(LockError, match=f"run is in use by process {other.pid} on {host()}: "),
        locked(tmp_path / "run"),
    ):
        raise AssertionError("it must not get here")
    assert file.read_text() == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]


@pytest.mark.parametrize(
    "owner",
    [replace(OWN, pid=GONE), replace(OWN, started=OWN.started - 1000)],
    ids=["gone", "its number is another process's now"],
)
def test_a_lock_of_this_machine_whose_process_is_gone_blocks_nobody(owner: Process, tmp_path: Path) -> None:
    leave(tmp_path, owner)
    with locked(tmp_path):
        assert Process.from_json(json.loads((tmp_path / NAME).read_text())) == OWN
    assert list(tmp_path.iterdir()) == []


def test_of_another_machine_the_last_touch_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process number is called here; and a lock that is being written counts as one."""
    monkeypatch.setattr(
        lock_module.time, "sleep", lambda seconds: os.utime(tmp_path / NAME, (time.time() - 59,) * 2)
    )
    for owner in (elsewhere(OWN.pid), elsewhere(GONE), "", "{"):
        leave(tmp_path, owner, age=60)
        with (
            pytest.raises(LockError, match=r"in use by .*last seen \d+ s ago; it counts as gone after 120 s"),
            locked(tmp_path),
        ):
            raise AssertionError("it must not get here")
        leave(tmp_path, owner, age=130)
        with locked(tmp_path):
            pass
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["killed", "ended", "alive", "another"])
def test_a_lock_of_another_machine_is_waited_for(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next job of a queue begins seconds after the one before was killed; it was refused, and the queue stood still."""
    file, looks = leave(tmp_path, elsewhere(), age=100), 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if end == "killed":  # time goes by
            os.utime(file, (time.time() - 100 - 5 * looks,) * 2)
        elif looks == 3 and end == "ended":
            file.unlink()
        elif looks == 3:
            leave(tmp_path, elsewhere(7 if end == "alive" else 8))

    if end == "killed":  # what the clock does, the file does here
        monkeypatch.setattr(lock_module, "_touched", lambda file: 0)
    monkeypatch.setattr(lock_module.time, "sleep", sleep)
    if end in ("killed", "ended"):
        with locked(tmp_path):
            assert Process.from_json(json.loads(file.read_text())) == OWN
        assert looks == (5 if end == "killed" else 3)
    else:
        number = 7 if end == "alive" else 8
        with pytest.raises(LockError, match=f"in use by process {number} on another"), locked(tmp_path):
            raise AssertionError("it must not get here")
        assert looks == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "was in use by process 7 on another-machine 100 s ago: waiting for a sign of it, 20 s at most" in said
    )


def test_a_lock_that_is_held_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "_TOUCH", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / NAME, (0, 0))
        deadline = time.monotonic() + 30
        while (tmp_path / NAME).stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / NAME).stat().st_mtime > 1


def test_the_same_thread_may_lock_again_another_one_may_not(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except LockError as error:
            refused.append(error)

    with locked(tmp_path):
        with locked(tmp_path / "." / ""):
            pass
        assert (tmp_path / NAME).exists()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(30)
    assert len(refused) == 1
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_start_together_one_gets_it(tmp_path: Path) -> None:
    """Four processes, again and again, on a lock that a killed one left: never two at once."""
    script = """
import os, sys, time
from pathlib import Path
from vqvae2.files.lock import LockError, locked
folder, got = Path(sys.argv[1]), 0
print("ready", flush=True)
input()
for _ in range(60):
    try:
        with locked(folder):
            (folder / "inside").touch(exist_ok=False)
            time.sleep(0.001)
            (folder / "inside").unlink()
            got += 1
            if got % 3 == 0:
                (folder / ".lock").write_text((folder / "dead").read_text())  # as if it was killed
    except LockError:
        time.sleep(0.001)
print(got)
"""
    (tmp_path / "dead").write_text(json.dumps(replace(OWN, pid=GONE).to_json()))
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    ended = [child.communicate("\n", timeout=60) for child in children]
    assert [err for _, err in ended] == [""] * 4, "FileExistsError: two were inside at once"
    assert sum(int(out) for out, _ in ended) > 0


def test_a_folder_that_is_lost_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        still_locked(folder)
        (folder / NAME).write_text(json.dumps(elsewhere().to_json()))
        with pytest.raises(LockError, match="taken over by process 7 on another-machine"):
            still_locked(folder)
        (folder / NAME).unlink()
        with pytest.raises(LockError, match="was removed or moved"):
            still_locked(folder)
    still_locked(folder)  # nobody has locked it


def test_what_cannot_be_written_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(lock_module, "_create", refuse)
    with locked(tmp_path) as lock:
        assert not lock.held
        still_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cause", [errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_lock_whose_age_cannot_be_known_is_not_waited_for(
    cause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its age is told by a file that is written now; without one it seemed to be touched now, and was watched for two minutes."""

    def refuse(*_: object) -> None:
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: pytest.fail("it waited"))
    for owner, who in ((elsewhere(), "process 7 on another-machine"), ("", "another process")):
        text = leave(tmp_path, owner, age=300).read_text()
        if cause == errno.EROFS:
            with locked(tmp_path) as lock:
                assert not lock.held
        else:
            with (
                pytest.raises(
                    LockError, match=f"locked by {who}, .* cannot be told, .*: {os.strerror(cause)}$"
                ),
                locked(tmp_path),
            ):
                raise AssertionError("it must not get here")
        assert (tmp_path / NAME).read_text() == text
    leave(tmp_path, OWN)
    with pytest.raises(LockError, match=f"in use by process {OWN.pid} on {host()}: wait"), locked(tmp_path):
        raise AssertionError("it must not get here")
    leave(tmp_path, replace(OWN, pid=GONE))  # of this machine, where no age is needed
    with locked(tmp_path) as lock:
        assert lock.held == (cause == errno.EDQUOT)
    assert capsys.readouterr().err == ""


def test_of_several_processes_the_first_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path) as lock:
        assert not lock.held
        assert list(tmp_path.iterdir()) == []


def test_links_and_pipes_are_no_locks_to_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(json.dumps(OWN.to_json()))
    run = tmp_path / "run"
    run.mkdir()
    for make in (lambda: (run / NAME).symlink_to(secret), lambda: os.mkfifo(run / NAME)):
        make()
        with pytest.raises(LockError), locked(run):
            raise AssertionError("it must not get here")
        (run / NAME).unlink()
    assert secret.exists()


def test_the_decorator(tmp_path: Path) -> None:
    stale = tmp_path / "out" / "part" / "deep" / f".x.png.{host()}-{GONE}.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")

    @locks("out", below=["part"])
    def job(value: int, out: Path) -> bool:
        """Says what it saw."""
        return (out / NAME).exists() and not stale.exists()

    assert job(1, out=tmp_path / "out")
    assert job.__doc__ == "Says what it saw."
    assert not (tmp_path / "out" / NAME).exists()


# --- temporary files ---


def test_temporary_files_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    def file(name: str, age: float = 0.0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    stale = [
        file(f".a.json.{host()}-{GONE}.tmp"),
        file(f".a.json.{GONE}.tmp"),  # as earlier versions named them
        file(".a.json.another-machine-7.tmp", 700),
        file(f".level-0.npy.{host()}-{GONE}.tmp", 5),
    ]
    kept = [
        temporary_name(file("a.json")),
        file(".a.json.another-machine-7.tmp2"),
        file(".b.json.another-machine-7.tmp", 60),
        file(f"a.json.{GONE}.tmp"),  # not hidden, so not ours
        file(".notes.tmp", 10**6),
        file(f"below/.a.json.{host()}-{GONE}.tmp"),
    ]
    kept[0].write_bytes(b"being written")
    os.utime(kept[0], (0, 0))
    (tmp_path / f".link.{GONE}.tmp").symlink_to(kept[1])
    assert sorted(sweep(tmp_path)) == sorted(stale)
    assert all(path.exists() for path in kept)
    assert sweep(tmp_path, below=True) == [kept[-1]]
    assert sweep(tmp_path / "missing") == []
