"""What README.md and the pages of docs/ name is there: files, names in them, settings, commands, links."""

import argparse
import ast
import dataclasses
import difflib
import functools
import re
import shlex
import sys
import typing
from pathlib import Path
from types import UnionType

import pytest

from flows.cli import VERBS
from flows.cli.options import overrides
from mdm.presets import PRESETS, Preset, resolve
from mdm.stage import Stage

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
LOG = "docs/log.md"  # tells what was, under the names of then
ROOMS = ("mdm/", "evaluation/", "preprocessing/", "flows/", "infra/", "tests/", "benchmarks/", "docs/")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands between single backticks, outside fenced blocks; tables write | as \\|."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def problem(reference: str, root: Path = ROOT) -> str | None:
    """What is wrong with ``FILE`` or ``FILE:Name.attribute["key"]``, read without importing anything."""
    file, _, names = reference.partition(":")
    if not (root / file).exists():
        return f"{reference}: there is no {file}"
    if not names:
        return None
    names, _, key = names.partition("[")
    nodes: list[ast.AST] = [parsed(root / file)]
    for name in names.split("."):
        there = [pair for node in nodes for pair in defined(node)]
        nodes = [node for found, node in there if found == name]
        if not nodes:
            close = ", ".join(difflib.get_close_matches(name, {found for found, _ in there})) or "nothing like it"
            return f"{reference}: no {name} there, but {close}"
    keys = {constant.value for node in nodes for constant in ast.walk(node) if isinstance(constant, ast.Constant)}
    return f"{reference}: no such key" if key and ast.literal_eval(key.rstrip("]")) not in keys else None


def defined(scope: ast.AST) -> list[tuple[str, ast.AST]]:
    """Names that a module or class defines, with where; what methods keep in ``self`` too."""
    found: list[tuple[str, ast.AST]] = []
    for node in getattr(scope, "body", []):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append((node.name, node))
        methods = ast.walk(node) if isinstance(scope, ast.ClassDef) and isinstance(node, ast.FunctionDef) else [node]
        for part in methods:
            if isinstance(part, ast.Assign | ast.AnnAssign | ast.AugAssign):
                targets = part.targets if isinstance(part, ast.Assign) else [part.target]
                names = [name for target in targets for name in ast.walk(target)]
                found += [(n.id, part) for n in names if isinstance(n, ast.Name) and part is node]
                found += [(n.attr, part) for n in names if isinstance(n, ast.Attribute) and part is not node]
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page != LOG])
def test_files_and_names_of_a_page_are_there(page: str) -> None:
    named = [s for s in spans((ROOT / page).read_text()) if re.match(r"[\w./-]+\.py\b", s) or s.startswith(ROOMS)]
    assert [line for span in named if (line := problem(span))] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text())
    inside = [link for link in links if not link.startswith("https://")]
    assert [link for link in inside if not (ROOT / page).parent.joinpath(link).exists()] == []


def missing_field(setting: str) -> str | None:
    """What is wrong with a setting as ``mdm config`` prints it, ``training.low_only``, if it begins as one."""
    first, *fields = setting.partition("=")[0].split(".")
    kind = {**typing.get_type_hints(Preset), **typing.get_type_hints(Stage)}.get(first)
    for field in fields:
        kind = typing.get_args(kind)[0] if isinstance(kind, UnionType) else kind  # X | None
        if not dataclasses.is_dataclass(kind):
            return None
        hints = typing.get_type_hints(kind)
        if field not in hints:
            return f"{setting}: no field {field}, but {', '.join(hints)}"
        kind = hints[field]
    return None


@pytest.mark.parametrize("page", PAGES)
def test_settings_of_a_page_are_fields(page: str) -> None:
    named = [s for s in spans((ROOT / page).read_text()) if re.fullmatch(r"[a-z_]+(\.\w+)+(=\S+)?", s)]
    settings = [s for s in named if not s.endswith((".json", ".safetensors"))]
    assert [line for setting in settings if (line := missing_field(setting))] == []


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options = VERBS[verb][1]
    if add_options is not None:
        add_options(parser)
    return parser


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    fenced = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    wrong = []
    for command in [*spans(text), *fenced]:
        if make := re.fullmatch(r"make ([a-z-]+)", command):
            wrong += [command] * (make[1] not in targets)
        verb = re.match(r"(?:\.venv/bin/)?mdm ([a-z]+)\b", command)
        if verb is None:
            continue
        known = parser_of(verb[1])._option_string_actions if verb[1] in VERBS else {}
        wrong += [command] * (verb[1] not in VERBS)
        wrong += [f"{command}: {option}" for option in re.findall(r"--[a-z-]+", command) if option not in known]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_commands_can_be_pasted(page: str) -> None:
    for _, block in FENCE.findall((ROOT / page).read_text()):
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True) if line.startswith(".venv/bin/mdm ") else []
            if words:
                arguments = parser_of(words[1]).parse_args(words[2:])
                if getattr(arguments, "preset", None) in PRESETS:
                    resolve(arguments.preset, overrides(arguments))
            assert not re.match(r"mdm |python |pytest ", line), f"{line}: only .venv/bin/… is found by every shell"


def test_what_a_machine_that_only_trains_needs() -> None:
    imported = {
        name.partition(".")[0]
        for path in (ROOT / "mdm").rglob("*.py")
        for node in parsed(path).body
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "mdm")])
    }
    assert imported - sys.stdlib_module_names - {"mdm"} == {"torch", "numpy", "safetensors", "PIL", "tqdm"}
    assert "needs torch, numpy, safetensors, pillow and tqdm;" in (ROOT / "docs" / "training.md").read_text()


def test_the_layout_names_every_file() -> None:
    (block,) = (block for _, block in FENCE.findall((ROOT / "README.md").read_text()) if block.startswith("mdm/"))
    wrong, top = {}, ""
    for below, folder, text in re.findall(r"^(  )?([a-z]+)/ +(.*(?:\n {10,}.*)*)", block, re.MULTILINE):
        top = top if below else folder
        path = ROOT / top / folder if below else ROOT / folder
        lists = [re.match(r"([a-z_0-9]+(?:, [a-z_0-9]+)*): ", part) for part in re.split(r";\s+", text)]
        named = [name for found in lists if found for name in found[1].split(", ")]
        there = sorted(file.stem for file in path.glob("[!_]*.py"))
        if top in ("mdm", "preprocessing", "evaluation", "flows") and sorted(named) != there:
            wrong[str(path)] = sorted({*named} ^ {*there})
    folders = {file.parent.relative_to(ROOT).name for file in ROOT.glob("[mpef]*/*/__init__.py")}
    assert wrong == {} and folders <= set(re.findall(r"^  ([a-z]+)/", block, re.MULTILINE))


def test_no_line_of_prose_is_over_120_letters() -> None:
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_code_is_broken_over_two_lines(page: str) -> None:  # the tests above would pass it over
    lines = FENCE.sub("", (ROOT / page).read_text()).splitlines()
    assert [line for line in lines if line.count("`") % 2] == []


def test_a_row_of_the_paper_leads_somewhere() -> None:
    rows = re.findall(r"^\| (?!the paper)(.+?) \| (.+) \|$", (ROOT / "docs" / "paper.md").read_text(), re.MULTILINE)
    assert len(rows) > 100
    leads = (".py", "**Absent**", "`training.", "`--set ")
    assert [paper for paper, code in rows if not any(lead in code for lead in leads)] == []


@pytest.mark.parametrize(
    "reference",
    [
        "mdm/network/nestled.py",
        "mdm/network/nested.py:NestedUnet",
        "mdm/network/nested.py:NestedUNet.forwards",
        "mdm/network/unet.py:UNet.conv_outs",
        "mdm/stage.py:Training.low_onli",
        'mdm/config.py:MODELS["MDM-S64S257"]',
        'mdm/choices.py:CHOICES["los"]',
    ],
)
def test_a_misspelt_name_is_found(reference: str) -> None:
    assert problem(reference) is not None
    assert (
        missing_field("training.low_onli") and missing_field("start.milestones=1") and not missing_field("start.stage")
    )
