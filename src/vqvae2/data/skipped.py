"""The list of images that are not used, with the reasons: `skipped.txt` beside the decoded images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqvae2.errors import printable
from vqvae2.files import atomic


@dataclass
class SkippedFile:
    """`skipped.txt`: one line per image that is not used, with its name, a tab and the reason.

    Attributes:
        path: the file.
        say: called with one line of text when `add` is first called; None = nothing is reported.
    """

    path: Path
    say: Callable[[str], None] | None = None

    def write(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Replace the list by these (name, reason); without any, the file is removed."""
        if skipped:
            atomic.write_text(self.path, "".join(listed_line(*item) + "\n" for item in skipped))
        else:
            self.path.unlink(missing_ok=True)

    def add(self, name: str, reason: str) -> None:
        """Append an image that turned out to be broken during training; only the first is reported."""
        atomic.append_text(self.path, listed_line(name, reason) + "\n")
        if self.say is not None:
            self.say(
                f"an image cannot be used ({listed_line(name, reason, ': ')}); "
                f"this and any further ones are listed in {self.path}"
            )
            self.say = None


def report_skipped(skipped: Sequence[tuple[str, str]], path: Path, say: Callable[[str], None]) -> None:
    """Report in one line how many images were skipped, with the first as an example; nothing if none were."""
    if skipped:
        say(
            f"skipped {len(skipped)} that cannot be used ({listed_line(*skipped[0], ': ')}); all are listed in {path}"
        )


def listed_line(name: str, reason: str, separator: str = "\t") -> str:
    """Name and reason as one printable line; characters that cannot be printed become `?`."""
    shown = (printable(re.sub(r"[\t\n\r]", "?", text)) for text in (name, reason))
    return separator.join(shown)
