"""What the documentation says is true: its code blocks run, its tree is the real one, its links lead somewhere.

A block is run, or says `no-run: reason` after its language and is parsed. The blocks of one file run in one folder, in
their order, and find there what earlier ones wrote:

    bash      every line is a command that succeeds
    console   `$ ` lines are commands; the lines below are part of what they print (exit code 1 where that is an error)
    python    a script of its own, or the file that its first line names (`# NAME.py`), which is run too
    yaml      is written to the file that its first line names (`# NAME.yaml`), for later commands
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import command
from alignkeep.cli.app import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "alignkeep"
# The longest first, so that no worker is left alone with it at the end.
PAGES = sorted(
    [
        *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")),
        *(ROOT / "docs").glob("*.md"),
    ],
    key=lambda page: (-page.read_text(encoding="utf-8").count("\nalignkeep "), page.name),
)
KOREAN = [ROOT / "README.ko.md", *(ROOT / "docs" / "ko").glob("*.md")]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FENCE = re.compile(r"^```(\S*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TESTBED = ["alignkeep", "testbed", "--out", "T"]  # with which most pages begin
SHORT = ("evaluate.limit=4", "evaluate.attacks=prefill")
OF_STAGE = {
    "train": ("train.trainer.max_steps=4",),
    "align": ("align.trainer.max_steps=2", "align.batch_size=2", "align.held_out.limit=8"),
    "merge": ("merge.sweep.limit=4", "merge.sweep.gain=0"),
}


class Block(NamedTuple):
    """One fenced block: its language, the reason why it is not run (empty: it is), its text and its line."""

    language: str
    no_run: str
    text: str
    where: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(FENCE.findall(text)), f"{page.name}: a fence that is not closed"
    for match in FENCE.finditer(text):
        language, information, body = match.groups()
        where = f"{page.name}:{text[: match.start()].count(chr(10)) + 1}"
        if information:
            assert re.fullmatch(r"no-run: .+", information), f"{where}: {information!r} is not `no-run: reason`"
        yield Block(language, information.removeprefix("no-run: "), body, where)


def commands(block: Block) -> Iterator[tuple[list[str], str]]:
    """(words, printed) of every command; `printed` is what a console block shows below it."""
    text = block.text.replace("\\\n", " ")
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if block.language == "console" else text.splitlines():
        line, _, printed = part.partition("\n")
        words = shlex.split(line, comments=True)
        if words:
            yield words, printed


def parse(words: list[str], where: str) -> None:
    """A command that is not run has a verb and options that exist. What it starts with is ours, or known."""
    import typer.main

    known = {"make", "pip", "torchrun", "accelerate", "alignkeep"}
    assert words[0] in known, f"{where}: {words[0]} is none of {', '.join(sorted(known))}"
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), f"{where}: no such target"
    if words[0] in {"torchrun", "accelerate"}:
        words = words[words.index("-m") + 1 :]
    if words[0] == "alignkeep":
        group = typer.main.get_command(app)
        with group.make_context("alignkeep", words[1:]) as context:
            name, verb, rest = group.resolve_command(context, words[1:])  # pyright: ignore[reportAttributeAccessIssue]
            verb.make_context(name, rest, parent=context).close()


def run(folder: Path, *words: object) -> command.Finished:
    """`alignkeep WORDS` in a process that stands in `folder`; what it prints is kept beside the folder."""
    return command.finished(command.start(_alignkeep, folder, [str(word) for word in words]), folder.parent)


def run_python(folder: Path, block: Block) -> command.Finished:
    """A script in a process that stands in `folder`."""
    return command.finished(command.start(_python, folder, block.text, block.where), folder.parent)


def _alignkeep(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    command._main(words, folder.parent)


def _python(folder: Path, source: str, where: str) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # as for a script or a prompt there
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    try:
        exec(compile(source, where, "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_block(block: Block, folder: Path, written: set[str]) -> None:
    """Run one block in `folder`; the names of files that it gives are added to `written`."""
    match block.language:
        case "bash" | "console":
            for words, printed in commands(block):
                if words == TESTBED:
                    continue  # was run for `world`
                assert words[0] == "alignkeep", f"{block.where}: {words[0]} is not run here, give it `no-run: reason`"
                done = run(folder, *words[1:])
                expected = 1 if printed.startswith("error: ") else 0
                assert done.code == expected, f"{block.where}: {shlex.join(words)}\n{done.stderr}"
                assert "Traceback" not in done.stderr, done.stderr
                for line in printed.splitlines():
                    assert line in done.stdout + done.stderr, f"{block.where}\n{done.stdout}{done.stderr}"
        case "python":
            named = re.match(r"# (\S+)\.py\n", block.text)
            if named:
                (folder / f"{named[1]}.py").write_text(block.text, encoding="utf-8")
                written.add(named[1])
            done = run_python(folder, block)
            assert done.code == 0, f"{block.where}\n{done.stderr}"
        case "yaml":
            named = re.match(r"# (\S+\.ya?ml)\n", block.text)
            assert named, f"{block.where}: the first line is not `# NAME.yaml`"
            (folder / named[1]).write_text(block.text, encoding="utf-8")
            written.add(named[1])
        case _:
            pytest.fail(f"{block.where}: nobody runs {block.language or 'a block without a language'}")


def check_block(block: Block) -> None:
    """Parse a block that is not run."""
    match block.language:
        case "bash" | "console":
            for words, _ in commands(block):
                parse(words, block.where)
        case "python":
            compile(block.text, block.where, "exec")
        case "yaml":
            assert yaml.safe_load(block.text) is not None
        case "json":
            json.loads(block.text)
        case "text" | "bibtex":
            pass
        case _:
            pytest.fail(f"{block.where}: nobody parses {block.language or 'a block without a language'}")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed as `alignkeep testbed --out T` writes it, once for all pages."""
    folder = tmp_path_factory.mktemp("docs") / "here"
    folder.mkdir()
    done = run(folder, *TESTBED[1:])
    assert done.code == 0, done.stderr
    return folder / "T"


@pytest.fixture
def here(world: Path, tmp_path: Path) -> Path:
    """A folder to work in, with the testbed in it as T."""
    shutil.copytree(world, tmp_path / "here" / "T")
    return tmp_path / "here"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs_or_says_why_not_and_is_parsed(page: Path, here: Path) -> None:
    written: set[str] = set()
    used: set[str] = set()
    for block in blocks(page):
        if block.no_run:
            check_block(block)
            continue
        run_block(block, here, written)
        if block.language != "yaml":
            used |= {name for name in written if name in block.text}
    assert used == written, "a file that no later block uses"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_every_example_runs(example: Path, here: Path) -> None:
    stages = [stage for stage in OF_STAGE if f"\n{stage}:" in example.read_text()]
    settings = (*SHORT, *(setting for stage in stages for setting in OF_STAGE[stage]))
    short = [word for setting in settings for word in ("--set", setting)]
    done = run(here, "run", example, "--out", "out", *short)
    assert done.code == 0, done.stderr
    assert (here / "out" / "report.html").is_file()


def test_the_tree_told_is_the_real_tree() -> None:
    [tree] = [block.text for block in blocks(ROOT / "CONTRIBUTING.md") if block.text.startswith("src/alignkeep/")]
    told: set[str] = set()
    folder = ""
    for line in tree.splitlines()[1:]:
        indent, words = len(line) - len(line.lstrip()), line.split()
        if indent == 2 and words[0].endswith("/"):
            folder = words[0]
            told.add(folder)
        elif indent == 2:
            told.add(words[0])
        else:
            told |= {folder + name for name in words}
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    found = {name for name in found if "__pycache__" not in name and not name.endswith(("/__init__.py", "py.typed"))}
    models = {name for name in found if name.startswith("testbed/models/")}
    folders = {f"{Path(name).parent.as_posix()}/" for name in found - models if "/" in name}
    assert told == (found - models) | folders | {"testbed/models/"}


@pytest.mark.parametrize("page", KOREAN, ids=lambda page: page.stem)
def test_a_korean_page_has_the_blocks_and_the_numbers_of_the_english_one(page: Path) -> None:
    """What is run there is run for the English page. Comments of commands and listings of files are in Korean."""

    def told(block: Block) -> object:
        match block.language:
            case "bash":
                return [words for words, _ in commands(block)]
            case "text":
                return [line.split()[0] for line in block.text.splitlines()]
            case _:
                return block.text

    english = ROOT / ("README.md" if page.name == "README.ko.md" else f"docs/{page.name}")
    ours, theirs = list(blocks(page)), list(blocks(english))
    assert [(one.language, one.no_run, told(one)) for one in ours] == [
        (one.language, one.no_run, told(one)) for one in theirs
    ]
    rates = [re.findall(r"\d+ % \[\d+, \d+\]", one.read_text(encoding="utf-8")) for one in (page, english)]
    assert rates[0] == rates[1]


def anchors(page: Path) -> set[str]:
    """The places of a page that a link can lead to: its titles, as GitHub and the site spell them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *KOREAN], ids=lambda page: page.stem)
def test_every_link_leads_to_a_file_and_a_title_of_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = page.parent / name if name else page
            assert file.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*PAGES, *KOREAN], ids=lambda page: page.stem)
def test_every_column_of_a_table_has_a_name(page: Path) -> None:
    heads = re.findall(r"^(\|.*)\n\| *-{3}", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    assert [head for head in heads if not all(cell.strip() for cell in head.strip("|").split("|"))] == []


def test_every_page_and_every_public_name_is_in_the_navigation_of_the_site() -> None:
    import alignkeep

    def leaves(node: object) -> Iterator[str]:
        match node:
            case dict():
                for inner in node.values():
                    yield from leaves(inner)
            case list():
                for inner in node:
                    yield from leaves(inner)
            case _:
                yield str(node)

    named = sorted(leaves(yaml.safe_load((ROOT / "site" / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    files = [page.relative_to(ROOT).as_posix().removeprefix("docs/") for page in [*PAGES, *KOREAN]]
    moved = [{"README.md": "index.md", "README.ko.md": "ko/index.md"}.get(name, name) for name in files]
    public = [f"reference/{name}.md" for name in alignkeep.__all__ if name != "__version__"]
    assert named == sorted([*moved, *public, "reference/settings.md"])


def test_every_verb_stands_in_the_readme() -> None:
    text = "".join(block.text for block in blocks(ROOT / "README.md") if block.language in {"bash", "console"})
    verbs = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(re.findall(r"^alignkeep (\w+)", text, re.MULTILINE)) == verbs


def test_every_setting_of_a_recipe_is_in_its_table() -> None:
    from alignkeep.recipe import Recipe
    from alignkeep.stages import STAGES

    filled = {stage.name: stage.filled for stage in STAGES}
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs" / "recipes.md").read_text(), re.MULTILINE)
    for stage, keys in rows:
        config = next(kind for kind in Recipe.model_fields[stage].annotation.__args__ if hasattr(kind, "model_fields"))
        assert set(keys.split()) == set(config.model_fields) - set(filled.get(stage, ()))
    assert {stage for stage, _ in rows} == {*filled, "report"}
