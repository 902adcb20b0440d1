"""`vqvae2 critic fit`: the classifier that `sample --critic` chooses by. The job itself is `Run.fit_critic`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqvae2.commands.options import Json, print_json, print_text
from vqvae2.files.progress import Reporter


def fit_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder; the critic goes to RUN/critic")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DATA", help="the images that the run was trained on, if they are elsewhere now"
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="network on whose features a linear probe is fitted: lite0, vgg16, inception; or resnet: a small "
            "classifier trained from scratch, so that the samples it chooses may be measured with any of those",
        ),
    ] = "lite0",
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="weights of that network; lite0 needs none")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="instead of a probe, a classifier of the run's classes: a TorchScript file that contains its image size, "
            "or a ResNet that save_classifier wrote",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the critic to the run's training images, and print its accuracy on the held-out ones.

    Measure the samples that it chooses with the features of another network. With its own features they would look
    better than they are. `torchrun --nproc-per-node P -m -- vqvae2 critic fit ...` shares features and test between P processes.
    """
    from vqvae2.processes import joined
    from vqvae2.run import Run

    group = joined()
    reporter = Reporter.of_process(group.main)
    critic = Run(run).fit_critic(data, features, weights, model, reporter, group)
    if as_json:
        print_json(critic.record)
        return
    print_text(
        f"{run}: critic {critic.record['kind']} on {critic.record['network']['name']}: {critic.accuracy:.1%} of "
        f"{critic.record['heldout']} held-out images right, {1 / len(critic.classes):.1%} by chance"
    )
