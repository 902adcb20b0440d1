"""The classification accuracy score (Ravuri and Vinyals 2019, arXiv 1905.10887): train on samples, test on real images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vqvae2.evaluate.classifier import predict
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.metrics import accuracy
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.resnet import ClassifierConfig, train_classifier
from vqvae2.evaluate.sets import NamedImages
from vqvae2.files.progress import Reporter

_LEARNT = 60_000  # training images that a classifier learns from unless more are asked for: all of MNIST, 12 GB at 256 px

Trial = tuple[NamedImages, Sequence[NamedImages]]
"""A labelled set on which a classifier is trained, and those on which it is tested."""


def classification(
    trials: Sequence[Trial],
    classes: int,
    config: ClassifierConfig,
    device: torch.device | str,
    reporter: Reporter,
) -> PartResult:
    """Train a classifier for each trial; one row for each set on which it is tested."""
    result = PartResult({"classifier": config.model_dump(), "rows": []})
    for training, tests in trials:
        assert training.labels is not None
        with reporter.track(f"classifier from {training.name}", config.steps, unit="steps") as tracker:
            net = train_classifier(
                training.batches(), training.labels, classes, config, device, tracker.update
            )
        for test in tests:
            assert test.labels is not None
            logits = predict(net, test.batches())
            result.figures["rows"].append(
                {
                    "trained_on": training.name,
                    "n": len(training),
                    "tested_on": test.name,
                    "test_n": len(test),
                    "top_1": accuracy(logits, test.labels),
                    "top_5": accuracy(logits, test.labels, min(5, classes)),
                }
            )
    return result


def _trials(context: Context) -> list[Trial]:
    """Training images, their reconstructions, as many samples, and other folders with labels."""
    real = context.training.first(context.options.classifier_n or _LEARNT)
    n, heldout = len(real), context.heldout
    trials: list[Trial] = [(real, [heldout])]
    tests = [heldout]
    if context.run is not None:
        reconstructed = context.encoder.reconstructed
        trials.append((reconstructed("reconstructions of training", real), [heldout]))
        tests.append(reconstructed("reconstructions of held out", heldout))
    if context.options.samples is not None:
        trials.append((context.samples.first(n), tests))
    elif context.run is not None and not context.untrained and context.run.config.prior.classes:
        trials.append((context.draw(n), tests))
    trials += [
        (images.first(n), [heldout]) for images in context.others.values() if images.labels is not None
    ]
    return trials


def measure(context: Context) -> PartResult:
    """Classifiers of the data's classes, whose training images are mirrored and moved at most as the run's are."""
    asked = context.options.classifier
    config = asked.within(context.data)
    result = classification(
        _trials(context), len(context.images.classes), config, context.device, context.reporter
    )
    if context.options.classifier_n is None and len(context.training) > _LEARNT:
        result.warnings.append(
            f"the classifiers of the accuracy score learned from {_LEARNT:,} of the {len(context.training):,} training images, and "
            "from no more samples; --classifier-n says how many"
        )
    if context.run is None and config != asked:
        result.warnings.append(
            "without a RUN classifiers learn from images that are neither mirrored nor shifted, and with a RUN from images that "
            "are mirrored and shifted as in its training, so accuracies with and without a RUN do not compare"
        )
    return result


def prepare(context: Context) -> None:
    """The samples, by all processes."""
    _trials(context)


PART = Part("classification", "Classification accuracy score", measure, needs=("classes",), prepare=prepare)
