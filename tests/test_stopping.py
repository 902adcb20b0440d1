"""Signals end every command in one line with 128 + number, never in the middle of an import, and a second one at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vqvae2 import stopping
from vqvae2.stopping import SIGNALS, stop_requests
from vqvae2.train import pipeline
from vqvae2.train.loop import Interrupted

Command = Callable[..., Any]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture
def handlers() -> Iterator[None]:
    """No signal is ignored, as under `nohup`; put back every handler, and forget every signal."""
    old = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in old.items():
        if handler == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    noted = (stopping._received, stopping._waiting, stopping._ending)
    for numbers in noted:
        numbers.clear()
    yield
    for number, handler in old.items():
        signal.signal(number, handler)
    for numbers in noted:
        numbers.clear()


# --- exit codes and lines ---


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", CODES)
def test_an_interrupted_command_says_so(
    number: signal.Signals, command: Command, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping.interrupt_on_signals()
    monkeypatch.setattr("vqvae2.run.load", lambda *_: signal.raise_signal(number))
    said = command("inspect", trained)
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert (said.code, said.out, said.err) == (CODES[number], "", f"vqvae2: interrupted{by}\n")


@pytest.mark.parametrize("number", CODES)
def test_a_saved_training_has_the_code_of_its_signal(
    number: signal.Signals, command: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted("autoencoder: saved at step 3 of 9", number)

    monkeypatch.setattr(pipeline, "train", interrupted)
    said = command("train", pictures, "--run", tmp_path / "run", "--preset", "tiny")
    line = "vqvae2: interrupted: autoencoder: saved at step 3 of 9; the same command continues from there\n"
    assert (said.code, said.err.splitlines(keepends=True)[-1]) == (CODES[number], line)


def test_a_terminal_that_is_gone_changes_no_exit_code(trained: Path) -> None:
    """Nobody reads standard error any more: the code is still that of the mistake."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "vqvae2", "trian"], stderr=write, check=False)
    os.close(write)
    assert done.returncode == 2


def test_a_real_signal_to_a_command_that_draws(tmp_path: Path) -> None:
    """One line, 143, and neither a temporary file nor a lock; the same command goes on."""
    out = tmp_path / "out"
    arguments = ["-m", "vqvae2", "sample", "emoji64", "--out", str(out), "--batch", "1", "--n"]
    child = subprocess.Popen([sys.executable, *arguments, "5000"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob("codes-*.npz")) and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert (child.returncode, err) == (143, "vqvae2: interrupted by SIGTERM\n")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


# --- imports ---


@pytest.mark.usefixtures("handlers")
def test_an_import_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an imported torch can abort the interpreter, so the exception comes after the import."""
    (tmp_path / "slow_module.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.3)\nWHOLE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    stopping.interrupt_on_signals()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the import and what follows it
        import slow_module

        assert slow_module.WHOLE
        time.sleep(30)
    assert sys.modules.pop("slow_module").WHOLE
    assert stopping.exit_code() == 143


@pytest.mark.usefixtures("handlers")
def test_what_is_ignored_stays_ignored() -> None:
    """`nohup` has SIGHUP ignored, and a shell SIGINT for what it starts in the background."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stopping.interrupt_on_signals()
    signal.raise_signal(signal.SIGHUP)
    with stop_requests(lambda _: None) as request:
        signal.raise_signal(signal.SIGHUP)
        assert not request.number
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


# --- in a training ---


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_both_signals_are_confirmed(first: signal.Signals, second: signal.Signals) -> None:
    stopping.interrupt_on_signals()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), stop_requests(said.append) as request:  # noqa: PT012
        signal.raise_signal(first)
        assert request.number == first
        assert said == [f"{first.name}: the state is saved after this step; a second signal stops at once"]
        signal.raise_signal(second)
    assert said[1:] == [
        f"{second.name}, the second signal: stopping at once, the steps since the last saved state are lost"
    ]
    assert stopping.exit_code() == CODES[second]


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_torchrun_hands_on_is_no_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler signals all processes, and torchrun hands its own signal on: the state was lost. A later one is a second one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    stopping.interrupt_on_signals()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt), stop_requests(said.append):  # noqa: PT012
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert len(said) == 1
        monkeypatch.setattr(stopping, "_REPEATED", 0.0)
        signal.raise_signal(signal.SIGTERM)
    assert len(said) == 2
