"""The list of images that are not used, with the reasons: `skipped.txt` beside the decoded images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vqvae2.errors import printable
from vqvae2.files import atomic
from vqvae2.processes import launched


@dataclass
class SkippedFile:
    """`skipped.txt`: one line per image that is not used, with its name, a tab and the reason.

    Attributes:
        path: the file.
        say: called with one line of text when `add` is first called; None = nothing is reported.
        images: the fingerprint of images that are decoded while training, so that broken ones are found one by one; it stands in
            `skipped.of` beside the file. "" = of all images it is known whether they are used.
    """

    path: Path
    say: Callable[[str], None] | None = None
    images: str = ""
    _known: set[str] = field(default_factory=set)
    _read: int = 0  # bytes of the file whose lines are known

    def write(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Replace the list by these (name, reason); without any, the file is removed.

        Those that were found while training stay if the images are the same. Then the main process alone writes: it opens the
        images first, and the others would remove what it finds meanwhile.
        """
        if self.images and launched()[0]:
            return
        lines = [listed_line(*item) for item in skipped]
        lines = [*dict.fromkeys([*lines, *self._found_before()])] if self.images else lines
        if lines:
            atomic.write_text(self.path, "".join(line + "\n" for line in lines))
        else:
            self.path.unlink(missing_ok=True)
        if self.images:
            with suppress(OSError, atomic.FileError):  # of a folder that is only read
                atomic.write_text(self._mark, self.images)

    def add(self, name: str, reason: str) -> None:
        """Append an image that turned out to be broken during training, unless it is listed; only the first is reported."""
        self._read_on()
        if (line := listed_line(name, reason)) not in self._known:
            atomic.append_text(self.path, line + "\n")
        if self.say is not None:
            self.say(
                f"an image cannot be used ({listed_line(name, reason, ': ')}); "
                f"this and any further ones are listed in {self.path}"
            )
            self.say = None

    @property
    def _mark(self) -> Path:
        return self.path.with_suffix(".of")

    def _found_before(self) -> list[str]:
        """The lines of the file, if it is of the same images."""
        try:
            if self._mark.read_text(encoding="utf-8") != self.images:
                return []
            return self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError):
            return []

    def _read_on(self) -> None:
        """Learn the lines that this process or another one appended meanwhile."""
        with suppress(OSError), self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
            self._read += len(new)
            self._known.update(new.decode("utf-8", "replace").splitlines())


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
