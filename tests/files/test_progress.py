"""Progress of a long job: a bar on a terminal, a line now and then without one, nothing when quiet."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from vqvae2.files import progress
from vqvae2.files.progress import Plan, Reporter, duration


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the trackers."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the environment variables that make any output count as a terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def terminal(width: int = 120) -> tuple[Reporter, StringIO]:
    """A reporter on a terminal that writes into memory."""
    reporter, out = Reporter(), StringIO()
    reporter.console = Console(
        file=out, force_terminal=True, width=width, highlight=False, color_system=None, soft_wrap=True
    )
    return reporter, out


# --- plain lines ---


def test_lines_go_to_standard_error_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is not wrapped however long it is, and brackets and colons are no markup; standard output stays free for results."""
    text = "loss [red]1.5[/red] " * 30 + "/a/b/:smile:.png 12:100:30"
    Reporter().say(text)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == text + "\n"


def test_a_first_line_soon_then_one_every_twenty_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Reporter().track("codes", 100, unit="images") as tracker:
        for done in range(1, 101):
            clock.now += 1
            tracker.update(done, f"text {done}")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(",")[0] for line in err.splitlines()] == [
        f"codes: {done}/100 images" for done in (4, 24, 44, 64, 84, 100)
    ]
    assert err.splitlines()[1] == "codes: 24/100 images, 1.0 images/s, 1.3 min left  text 24"
    assert "0.0 min left" in err.splitlines()[-1]
    assert "\x1b" not in err


def test_slow_steps_print_a_line_each(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Reporter().track("t", 10)
    for done in (1, 2, 3):
        clock.now += 50
        tracker.update(done)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_rate_counts_only_the_steps_since_the_job_was_resumed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed at 900 of 1000: 50 steps in 100 s are 0.5 per second, and the other 50 take as long."""
    tracker = Reporter().track("resumed", 1000, done=900)
    clock.now += 100
    tracker.update(950)
    assert capsys.readouterr().err == "resumed: 950/1000 steps, 0.5 steps/s, 1.7 min left  \n"


def test_the_rate_in_another_unit(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Reporter().track("t", 1000)
    clock.now += 100
    tracker.update(200, "x", 32, "images")
    assert capsys.readouterr().err == "t: 200/1000 steps, 64.0 images/s, 6.7 min left  x\n"


def test_no_division_by_zero_without_time_or_progress(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Reporter().track("t", 4)
    clock.now += 30
    tracker.update(0)
    assert "0/4 steps, 0.0 steps/s" in capsys.readouterr().err
    tracker = Reporter().track("t", 4)
    tracker.update(4)
    assert "4/4 steps" in capsys.readouterr().err


def test_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(quiet=True)
    reporter.say("nothing")
    with reporter.track("t", 2) as tracker:
        clock.now += 1000
        tracker.update(1, "nothing")
        tracker.update(2, "nothing")
    assert capsys.readouterr() == ("", "")


def test_quiet_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    reporter = Reporter(quiet=True)
    assert reporter.console.is_terminal
    with reporter.track("t", 2) as tracker:
        tracker.update(2)
    assert tracker.bar is None
    assert capsys.readouterr() == ("", "")


# --- signs of life between the figures, and the time until everything is done ---


def test_ticks_keep_the_last_text_and_do_little_between(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Reporter().track("t", 1000)
    for step in range(1, 241):  # four steps in a second
        clock.now += 0.25
        tracker.tick(step, 32, "images")
        if step == 80:
            tracker.update(step, "loss 1.5", 32, "images")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1] for line in lines] == ["16/1000", "96/1000", "176/1000"]
    assert [line.rstrip().endswith("loss 1.5") for line in lines] == [False, True, True]
    assert "128.0 images/s" in lines[0]


def test_the_time_for_all_jobs_follows_from_their_work_and_the_rate_so_far(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 units of work in 1000 s; 50 and 10 units follow, of which the last takes no more than 60 s."""
    asked = []

    def measure() -> dict[str, tuple[float, float]]:
        asked.append(1)
        return {"first": (100, float("inf")), "second": (50, float("inf")), "third": (10, 60)}

    reporter = Reporter()
    reporter.plan = Plan(measure)
    with reporter.track("reading", 10, unit="images") as tracker:
        tracker.update(1)
        assert asked == []
        clock.now += 100
        tracker.update(10)
    with reporter.track("first", 1000) as tracker:
        clock.now += 600
        tracker.update(600)  # 400 s left, then 500 s, then 60 s
        clock.now += 400
        tracker.update(1000)
    with reporter.track("second", 100, done=50) as tracker:  # its first half was done before
        clock.now += 125
        tracker.update(75)  # 25 more take as long; in all 112.5 units took 1125 s; then 60 s
    lines = capsys.readouterr().err.splitlines()
    assert "for all" not in lines[0]
    assert "6.7 min left (16.0 min for all)" in lines[1]
    assert "0.0 min left (9.3 min for all)" in lines[2]
    assert "2.1 min left (3.1 min for all)" in lines[3]
    assert asked == [1]


def test_a_job_that_ends_by_the_clock(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.plan = Plan(lambda: {"t": (1.0, 120.0)})
    tracker = reporter.track("t", 1000)
    clock.now += 60
    tracker.update(10)
    assert "1.0 min left (1.0 min for all)" in capsys.readouterr().err


def test_a_job_that_ends_by_the_clock_and_is_resumed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seconds of its earlier sittings count for its two minutes, and not for its rate."""
    reporter = Reporter()
    reporter.plan = Plan(lambda: {"t": (1.0, 120.0)})
    tracker = reporter.track("t", 1000, done=10, earlier=60)
    clock.now += 30
    tracker.update(15)
    assert "0.5 min left (0.5 min for all)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (40, "40 s"),
        (150, "2.5 min"),
        (720, "12 min"),
        (12600, "3.5 h"),
        (4 * 86400, "4 days"),
        (1500 * 86400, "4 years"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# --- a terminal ---


def test_a_bar_shows_how_far_and_how_fast(clock: Clock) -> None:
    reporter, out = terminal()
    with reporter.track("level 0", 10, done=4) as tracker:
        assert tracker.bar is not None
        clock.now += 2
        tracker.update(8, "loss 1.5", 32, "images")
        assert tracker.bar.tasks[0].completed == 8
        tracker.update(10, "loss 0.5", 32, "images")
        assert tracker.bar.finished
    shown = out.getvalue().rsplit("level 0", 1)[1]
    assert "10/10 steps" in shown
    assert "96.0 images/s" in shown
    assert "loss 0.5" in shown


@pytest.mark.parametrize("name", ["[red] foxes", "[/v2]", ":smile:"])
def test_brackets_and_colons_in_the_title_of_a_bar_are_no_markup(name: str) -> None:
    reporter, out = terminal()
    with reporter.track(f"features of {name}", 10) as tracker:
        tracker.update(3, name)
    assert f"features of {name}" in out.getvalue()
    assert out.getvalue().count(name) > 1


def test_a_resumed_bar_begins_where_it_was() -> None:
    reporter, out = terminal()
    with reporter.track("t", 10, done=4) as tracker:
        assert tracker.bar is not None
        assert (tracker.bar.tasks[0].completed, tracker.bar.tasks[0].total) == (4, 10)
    assert "4/10 steps" in out.getvalue()


def test_a_total_that_becomes_known_later() -> None:
    """The number of images becomes known when they are listed."""
    reporter, out = terminal()
    with reporter.track("reading images", 1, unit="images") as tracker:
        tracker.total = 50
        tracker.update(20)
        assert tracker.bar is not None
        assert not tracker.bar.finished
    assert "20/50 images" in out.getvalue()


def test_lines_beside_a_bar_stay_whole() -> None:
    reporter, out = terminal()
    with reporter.track("t", 10) as tracker:
        reporter.say("a line [x] beside the bar")
        tracker.update(3)
    assert "a line [x] beside the bar\n" in out.getvalue()


def test_the_cursor_comes_back_after_an_error() -> None:
    reporter, out = terminal()
    with pytest.raises(KeyboardInterrupt), reporter.track("t", 10) as tracker:
        raise KeyboardInterrupt
    assert tracker.bar is not None
    assert not tracker.bar.live.is_started
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
