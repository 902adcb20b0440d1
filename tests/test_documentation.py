"""The documentation keeps up with the code: its commands parse, and the pages of the site are complete."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import typer
import yaml

from vqvae2.cli import app

sys.path.append(str(Path(__file__).parents[1] / "tools"))

import site_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/**/*.md")]
RECIPES = [*ROOT.glob("recipes/*.yaml")]


def code_lines(markdown: str) -> list[str]:
    """The lines of the code blocks and the inline code of a page; lines that end with a backslash are joined."""
    markdown = re.sub(r"\\\n\s*", "", markdown)
    blocks = re.findall(r"^```.*?\n(.*?)^```", markdown, flags=re.S | re.M)
    rest = re.sub(r"^```.*?^```", "", markdown, flags=re.S | re.M)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`]+)`", rest)


def commands(lines: list[str]) -> list[str]:
    """What follows `vqvae2` in the lines that begin with it, or with it in .venv."""
    found = (re.match(r"#?\s*(?:\.venv/bin/)?vqvae2 (\S.*)", line.replace("\n", " ")) for line in lines)
    return [match[1] for match in found if match]


def documented() -> list[tuple[str, str]]:
    """(file, command) of all pages and of the comments of the recipes."""
    lines = {file: code_lines(file.read_text("utf-8")) for file in PAGES}
    lines |= {file: re.sub(r"\\\n#\s*", "", file.read_text("utf-8")).splitlines() for file in RECIPES}
    return [
        (file.relative_to(ROOT).as_posix(), line)
        for file, text in sorted(lines.items())
        for line in commands(text)
    ]


def fault(line: str) -> str | None:
    """What the command line does not know of a command; None if it knows all."""
    words = shlex.split(line.replace("...", ""), comments=True)
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"no verb {words[0]}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)} - {"--help"}
    return f"no option {', '.join(sorted(options - known))}" if options - known else None


def test_every_command_has_its_verb_and_options() -> None:
    listed = documented()
    assert len(listed) > 30
    assert {line.split()[0] for _, line in listed} >= {"train", "sample", "complete", "evaluate", "critic"}
    faults = [f"{file}: vqvae2 {line}: {reason}" for file, line in listed if (reason := fault(line))]
    assert not faults, "\n".join(faults)


def test_a_wrong_command_is_a_fault() -> None:
    assert fault("draw RUN") == "no verb draw"
    assert fault("sample RUN --n 4 --size 8  # --of what") == "no option --size"


def test_commands_are_read_from_code_alone() -> None:
    text = "vqvae2 x\n`vqvae2 a --b 1` and `other`\n\n```\n.venv/bin/vqvae2 c \\\n    --d\npip install vqvae2\n```\n"
    assert sorted(commands(code_lines(text))) == ["a --b 1", "c --d"]


def test_links_become_those_of_the_site() -> None:
    text = "[a](docs/a.md) ![b](docs/images/b.png) [c](../results/c.json) [d](recipes/) [e](../README.md#f) [g](https://h/docs/)"
    assert site_pages.relink(text) == (
        "[a](a.md) ![b](images/b.png) [c](results/c.json) [d](recipes.md) [e](index.md#f) [g](https://h/docs/)"
    )


def test_every_page_is_in_the_navigation(tmp_path: Path) -> None:
    site_pages.gather(tmp_path / "pages")
    navigation = re.findall(
        r"[\w-]+\.md", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    )
    assert sorted(navigation) == sorted(page.name for page in (tmp_path / "pages").glob("*.md"))
    assert (tmp_path / "pages" / "results" / "quantizer.json").is_file()
