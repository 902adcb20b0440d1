"""Gather the pages of the documentation site in one folder: docs/, and what is shown from outside it.

    python tools/site_pages.py build/pages

README, CHANGELOG and their like come from the root, every recipe becomes a section of one page, the presets become another, and the JSON files of
results/, the example scripts and the notebooks are copied so that links to them work. Links are written as they work in the
repository (`docs/data.md` in README, `../results/x.json` in docs/); here the root and docs/ become one folder, and the links
change with it.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from vqvae2.autoencoder.model import VQVAE
from vqvae2.commands.presets import presets
from vqvae2.config.models import Config
from vqvae2.config.overrides import settings
from vqvae2.config.presets import preset
from vqvae2.prior.hierarchy import HierarchicalPrior

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/baselines/README.md": "baselines.md",
}
FILES = ("results/*.json", "CITATION.cff", "examples/*.py", "examples/notebooks/*.ipynb")

MAIN = (  # settings that the page of presets explains
    *("data.size", "data.flip", "data.shift", "data.holdout"),
    *(f"autoencoder.{name}" for name in ("strides", "codes", "code_dim", "hidden", "residual", "blocks")),
    *("autoencoder.entropy_penalty", "autoencoder.nested_dropout"),
    *(f"train_autoencoder.{name}" for name in ("steps", "minutes", "batch", "lr", "warmup", "patience")),
    *(
        f"prior.levels.*.{name}"
        for name in ("kind", "hidden", "residual", "layers", "kernel", "attention_every")
    ),
    *(f"prior.levels.*.{name}" for name in ("dropout", "label_dropout", "condition_blocks")),
    "prior.conditional",
    *(
        f"train_prior.*.{name}"
        for name in ("steps", "minutes", "batch", "lr", "copies", "average", "patience")
    ),
    *("sampling.guidance", "sampling.top_p", "sampling.temperature"),
)
PRESETS = """# Presets

A preset is a set of all settings. `vqvae2 train DATA --run RUN --preset NAME` takes one; without `--preset` one is chosen by the number
of the images and by the usual length of their short side (without a GPU, 64 px at most). `vqvae2 inspect --preset NAME` shows what a training with it costs, and
with `--set`, `--config` or `--size` what one with your changes costs.

{table}

Grids and codebooks are listed from the coarsest level, weights as autoencoder + priors, steps as autoencoder; priors. `imagenet256` and `ffhq1024`
have the settings of the paper's tables, `demo` is that of `vqvae2 demo`, and `tiny` is for trying out.

## Changing settings

`--set KEY=VALUE` changes one setting and may be repeated; the last one counts. Names are joined by dots. VALUE is YAML.

| what | how |
| --- | --- |
| a number, a word | `--set train_autoencoder.steps=2000`, `--set prior.levels.0.kind=transformer` |
| a list | `--set autoencoder.strides=8,2`, or `--set 'autoencoder.strides=[8, 2]'` |
| height and width | `--set data.size=64x96`, or `--size 64x96` |
| one level of several, 0 the coarsest | `--set prior.levels.0.layers=4`, `--set train_prior.1.steps=500` |
| every level | `--set 'prior.levels.*.dropout=0.2'` |
| many | `--config FILE`, a YAML file with some of the settings; `--set` comes after it. A list in it replaces the whole list |

`autoencoder.strides`, `autoencoder.codes`, `prior.levels` and `train_prior` need as many entries as there are levels. Strides count from the image,
everything else from the coarsest level. So another number of levels changes all four lists, most easily from a preset that has it: `small128`, `small256` and
`ffhq1024` have three. With one level:

```
--preset small64 --set autoencoder.strides=4 --set autoencoder.codes=512 --set 'prior.levels=[{{layers: 8, hidden: 128}}]' --set 'train_prior=[{{steps: 3000}}]'
```

Settings that a list of your own leaves out have the defaults below, not those of the preset. Height and width must be multiples of the product of the strides.

## The main settings

The defaults are those of a setting that neither the preset nor you give. `*` stands for the number of a level. `vqvae2 train --help-config` lists all settings, and
`RUN/config.yaml` those of a run.

{settings}
"""


def relink(text: str) -> str:
    """The Markdown of a page with its links changed to the site's: no `docs/`, no `../`, README by its page's name."""
    text = re.sub(r"\]\((?:\.\./)+", "](", text)
    text = text.replace("](docs/", "](").replace("](recipes/)", "](recipes.md)")
    for page, name in PAGES.items():
        text = text.replace(f"]({page}", f"]({name}")
    return text


def recipes() -> str:
    """The page of all recipes: the name of each file as a heading, its text below."""
    sections = [
        f"## {file.name}\n\n```yaml\n{file.read_text(encoding='utf-8')}```\n"
        for file in sorted((ROOT / "recipes").glob("*.yaml"))
    ]
    first = (
        "# Recipes\n\nA recipe is a file of settings for `vqvae2 train --config`. The comment at its beginning gives the "
        "command, the time that it takes and the figures to expect.\n"
    )
    return "\n".join([first, *sections])


def presets_page() -> str:
    """The page of all presets: their sizes, how settings are changed, and what the main ones mean."""
    titles = (
        "preset",
        "image, px",
        "grids",
        "codes per image",
        "codebooks",
        "weights",
        "steps",
        "chosen for",
    )
    known = {key: (default, description) for key, default, description in settings()}
    rows = [(f"`{key}`", f"`{_plain(known[key][0])}`", known[key][1]) for key in MAIN]
    return PRESETS.format(
        table=_table(titles, [_row(item) for item in presets()]),
        settings=_table(("setting", "default", "meaning"), rows),
    )


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    """A preset's row of the table, of what `vqvae2 presets` says and the weights of its networks."""
    autoencoder, priors = weights(preset(item["name"]))
    steps = [f"{count:,}" for count in item["steps"]]
    return (
        f"`{item['name']}`",
        "x".join(map(str, dict.fromkeys(item["image"]))),
        " + ".join(f"{height}x{width}" for height, width in item["grids"]),
        f"{sum(height * width for height, width in item['grids']):,}",
        ", ".join(map(str, item["codes"])),
        " + ".join(f"{count / 1e6:.1f} M" for count in (autoencoder, *priors)),
        f"{steps[0]}; {', '.join(steps[1:])}",
        item["chosen_for"],
    )


def weights(config: Config) -> tuple[int, list[int]]:
    """The trained weights of the autoencoder, and of the prior of each level, which are counted and not allocated."""
    with torch.device("meta"):
        autoencoder = VQVAE(config.autoencoder)
        prior = HierarchicalPrior(config.prior, config.geometry)
    networks = (autoencoder, *prior.levels)
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    return counts[0], counts[1:]


def _plain(value: Any) -> str:
    """A default as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def gather(out: Path) -> None:
    """Write all pages, images and files into `out`; what was there before is removed."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)
    for page, name in PAGES.items():
        shutil.copy(ROOT / page, out / name)
    (out / "recipes.md").write_text(recipes(), encoding="utf-8")
    (out / "presets.md").write_text(presets_page(), encoding="utf-8")
    for page in out.glob("*.md"):
        page.write_text(relink(page.read_text(encoding="utf-8")), encoding="utf-8")
    for pattern in FILES:
        for file in sorted(ROOT.glob(pattern)):
            target = out / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def main() -> None:
    """Read the command line and gather the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the pages; it is emptied first")
    gather(parser.parse_args().out)


if __name__ == "__main__":
    main()
