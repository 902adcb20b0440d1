"""Gather the pages of the documentation site in one folder: docs/, and what is shown from outside it.

    python tools/site_pages.py build/pages

README, CHANGELOG and their like come from the root, every recipe becomes a section of one page, and the JSON files of
results/, the example scripts and the notebooks are copied so that links to them work. Links are written as they work in the
repository (`docs/data.md` in README, `../results/x.json` in docs/); here the root and docs/ become one folder, and the links
change with it.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/baselines/README.md": "baselines.md",
}
FILES = ("results/*.json", "CITATION.cff", "examples/*.py", "examples/notebooks/*.ipynb")


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


def gather(out: Path) -> None:
    """Write all pages, images and files into `out`; what was there before is removed."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)
    for page, name in PAGES.items():
        shutil.copy(ROOT / page, out / name)
    (out / "recipes.md").write_text(recipes(), encoding="utf-8")
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
