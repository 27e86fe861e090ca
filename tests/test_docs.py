"""Every code block of the README and of the documentation runs.

Blocks of one page run in order in one empty folder. ``sh`` blocks run in a shell, ``python`` blocks
in one interpreter per block. A block whose first line holds ``not run:`` says why it is not.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from voco.methods import available
from voco.shipped import shipped_or_own

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted((ROOT / "src" / "voco").rglob("*.py"))
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [
        (language, code)
        for language, code in found
        if language in {"sh", "python"} and "not run:" not in code.split("\n", 1)[0]
    ]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_every_code_block_runs(page, tmp_path):
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, code in blocks(page):
        command = ["sh", "-eu", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PATH": tools},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{page.name}:\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_has_a_language(page):
    fences = re.findall(r"^```(\S*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert all(fences[::2]), f"{page.name}: a code block without a language"


def texts(file: Path) -> list[str]:
    """Every string in a module, with an ellipsis for each value that is put into it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", "…") for part in node.values]
            found.append("".join(part if isinstance(part, str) else "…" for part in parts))
    return found


def test_titles_of_the_faq_are_messages_of_the_program():
    said = [text for file in SOURCES for text in texts(file)]
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    titles = re.findall(r"^##+ `(.*)`$", page, re.MULTILINE)
    assert len(titles) > 20
    assert [title for title in titles if not any(title in text for text in said)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_recipes_that_are_called_by_name_come_along(page):
    text = page.read_text(encoding="utf-8")
    names = set(
        re.findall(r"^(?:.* )?voco (?:pretrain|finetune) ([a-z][\w-]+)", text, re.MULTILINE)
    )
    shipped = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert names <= shipped


def test_the_table_of_methods_is_complete():
    page = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE)) == sorted(available())


@pytest.mark.parametrize("name", available())
def test_every_method_has_a_recipe_and_one_that_only_shows_that_it_works(name):
    assert shipped_or_own("recipe", name).parent == ROOT / "recipes"
    smoke = yaml.safe_load(shipped_or_own("recipe", f"smoke-{name}").read_text(encoding="utf-8"))
    assert (smoke["method"]["name"], smoke["steps"]) == (name, 30)
