"""Emoji as code points: their names, classes and skin tones, and the split into training and test images."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
    "Flags",
)
TEST_SHARE = 0.1


TONES = {
    "1f3fb": "light skin tone",
    "1f3fc": "medium-light skin tone",
    "1f3fd": "medium skin tone",
    "1f3fe": "medium-dark skin tone",
    "1f3ff": "dark skin tone",
}
COUPLES = {
    "1f468-200d-1f91d-200d-1f468": "1f46c",
    "1f469-200d-1f91d-200d-1f468": "1f46b",
    "1f469-200d-1f91d-200d-1f469": "1f46d",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    "1faf1-200d-1faf2": "1f91d",
    "1f9d1-200d-1f430-200d-1f9d1": "1f46f",
    "1f468-200d-1f430-200d-1f468": "1f46f-200d-2642",
    "1f469-200d-1f430-200d-1f469": "1f46f-200d-2640",
    "1f9d1-200d-1faef-200d-1f9d1": "1f93c",
    "1f468-200d-1faef-200d-1f468": "1f93c-200d-2642",
    "1f469-200d-1faef-200d-1f469": "1f93c-200d-2640",
}
"""Two people with two skin tones are spelt out; without the tones that is this one emoji."""

TWINS = {
    "1f471": "1f9d1",  # blond person and person: the same image in one tone of Fluent 3D
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # pairs holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",
    "1f9d1-200d-2764-200d-1f48b-200d-1f9d1": "1f48f",
    "1f9d1-200d-2764-200d-1f9d1": "1f491",
    "1f63a": "1f431",  # grinning cat: Fluent 3D has the image of the cat face
    "26c4": "2603",  # the two snowmen
    "1f1e7-1f1fb": "1f1f3-1f1f4",  # flags that are equal by law or to the eye
    "1f1f8-1f1ef": "1f1f3-1f1f4",
    "1f1fa-1f1f2": "1f1fa-1f1f8",
    "1f1f2-1f1eb": "1f1eb-1f1f7",
    "1f1e8-1f1f5": "1f1eb-1f1f7",
    "1f1ea-1f1e6": "1f1ea-1f1f8",
    "1f1ed-1f1f2": "1f1e6-1f1fa",
    "1f1e9-1f1ec": "1f1ee-1f1f4",
    "1f1f7-1f1f4": "1f1f9-1f1e9",
    "1f1ee-1f1e9": "1f1f2-1f1e8",
}
GENDER_OR_DIRECTION = re.compile("-200d-(2640|2642|27a1)")
TONE = re.compile("-(1f3f[b-f])")


def canonical(text: str) -> str:
    """One spelling per emoji: lower-case code points of at least four digits, no variation selector."""
    points = (point.zfill(4) for point in text.lower().replace("_", "-").split("-"))
    return "-".join(point for point in points if point != "fe0f")


def family(base: str) -> str:
    """What must stay on one side of the split: a base, its genders and directions, and look-alikes.

    Man, woman and person of one occupation differ by a few pixels of hair, so a split by base alone would put
    almost the same image on both sides.
    """
    neutral = GENDER_OR_DIRECTION.sub("", base)
    neutral = "-".join({"1f468": "1f9d1", "1f469": "1f9d1"}.get(point, point) for point in neutral.split("-"))
    return TWINS.get(neutral, neutral)


@dataclass(frozen=True)
class Label:
    """Everything but the image: what one emoji is and where it belongs."""

    codepoint: str
    base: str
    name: str
    group: str
    split: str


class Labels:
    """The label table, and the split that follows from it."""

    def __init__(self, table: dict[str, dict[str, Any]]) -> None:
        points = {canonical("-".join(f"{ord(c):x}" for c in emoji)): info for emoji, info in table.items()}
        self._info = {point: (str(info["name"]), str(info["group"])) for point, info in points.items()}
        self._slugs = {str(info["slug"]).replace("_", "-"): point for point, info in points.items()}
        self._test = self._choose_test()

    def _choose_test(self) -> set[str]:
        """In each class the families with the smallest hashes, until they hold a tenth of its emoji."""
        members: dict[str, list[str]] = {}
        for base in self._info:
            members.setdefault(family(base), []).append(base)
        test: set[str] = set()
        for group in CLASSES:
            families = [key for key, bases in members.items() if self._info[min(bases)][1] == group]
            wanted = TEST_SHARE * sum(len(members[key]) for key in families)
            for key in sorted(families, key=lambda text: hashlib.sha256(text.encode()).digest()):
                if wanted < len(members[key]) / 2:
                    break
                wanted -= len(members[key])
                test.add(key)
        return test

    @property
    def slugs(self) -> dict[str, str]:
        """Names with hyphens, as icon sets use them, to code points."""
        return dict(self._slugs)

    def find(self, text: str) -> Label | None:
        """The label of a code point sequence in any spelling; None for what is not an emoji of the table."""
        point = canonical(text)
        base = TONE.sub("", point)
        base = COUPLES.get(base, base)
        if base not in self._info and f"{base}-e007f" in self._info:  # flags of England, Scotland and Wales
            point, base = f"{point}-e007f", f"{base}-e007f"
        if base not in self._info:
            return None
        name, group = self._info[base]
        tones = ", ".join(dict.fromkeys(TONES[tone] for tone in TONE.findall(point)))
        split = "test" if family(base) in self._test else "train"
        return Label(point, base, f"{name}: {tones}" if tones else name, group, split)
