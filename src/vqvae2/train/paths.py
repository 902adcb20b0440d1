"""Paths in the settings of a run, which has to be usable from any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqvae2.config.models import Config, parse

PLACES = ("start", "perceptual_weights")
"""Settings of a training that may be paths, names of models of the package or ids of the Hub."""


def from_anywhere(config: Config) -> Config:
    """The paths in the settings made absolute, so that the run can be used from any folder, as its data can.

    What is recorded of a start or of perceptual weights is then relative only if it names no place on this machine.
    """
    value = config.model_dump(mode="json")
    for key in ("labels", "image_root"):
        if value["data"][key]:
            value["data"][key] = str(Path(value["data"][key]).absolute())
    for training, key in _places(value):
        if Path(training[key]).exists():
            training[key] = str(Path(training[key]).absolute())
    return parse(value)


def keep_places(new: dict[str, Any], old: dict[str, Any]) -> None:
    """Leave the spelling of a recorded path as it is where the new settings name the same: it may have been moved, and earlier
    versions recorded it as it was given.
    """
    recorded = {str(Path(training[key]).absolute()): training[key] for training, key in _places(old)}
    for training, key in _places(new):
        training[key] = recorded.get(str(Path(training[key]).absolute()), training[key])


def _places(value: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """The settings of the trainings, as JSON, that may be paths: the dictionary and the key of each."""
    trainings = [value["train_autoencoder"], value["sharpen"], *value["train_prior"]]
    return [(training, key) for training in trainings for key in PLACES if training.get(key)]
