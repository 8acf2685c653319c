"""What README and docs name exists: public names, arguments, options, settings, files and headings."""

import ast
import functools
import importlib
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

import xscalemixer as xsm
from xscalemixer.__main__ import _parser
from xscalemixer.accessor import DatasetAccessor, TreeAccessor
from xscalemixer.training.config import config_of

ROOT = Path(__file__).parents[1]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.exists()]
OTHER_NAMES = {"terrain": "adjust_to_terrain"}  # of the accessor, and the function it calls


def blocks(language):
    return [
        pytest.param(code, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, code in enumerate(re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S))
    ]


def parse(code):
    """A snippet, in which ``...`` may stand for further arguments."""
    return ast.parse(re.sub(r",\s*\.\.\.(?=\s*[,)])", "", code))


def called(node):
    """The public function of a call, and whether an accessor gives its first argument; None if it is none of ours."""
    *before, last = ast.unparse(node.func).split(".")
    if before and before[-1] == "scalemixer":
        assert any(hasattr(each, last) for each in (DatasetAccessor, TreeAccessor)), last
        return getattr(xsm, OTHER_NAMES.get(last, last)), True
    if before and before[0] == "xsm" and all(name.isidentifier() for name in before):
        return functools.reduce(getattr, [*before[1:], last], xsm), False
    return None, False


@pytest.mark.parametrize("code", blocks("python"))
def test_snippets_call_what_there_is_as_it_is_defined(code):
    for node in (node for node in ast.walk(parse(code)) if isinstance(node, ast.Call)):
        function, bound = called(node)
        if function is not None:
            given = [arg for arg in node.args if not (isinstance(arg, ast.Constant) and arg.value is ...)]
            keywords = {each.arg: None for each in node.keywords if each.arg}
            inspect.signature(function).bind_partial(*[None] * (len(given) + bound), **keywords)


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_parse_and_scripts_have_their_options(code):
    for command in re.split(r"\n|&&", code):
        words = shlex.split(command, comments=True)
        ours = next((i for i, word in enumerate(words) if word.endswith("xscalemixer")), None)
        if ours is not None:
            _parser().parse_args(words[ours + 1 :])
        for script in (word for word in words if word.endswith(".py")):
            text = (ROOT / script).read_text("utf-8")
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in text] == []


@pytest.mark.parametrize("code", blocks("json"))
def test_settings_are_read(code):
    settings = json.loads(code)
    settings.pop("data", None)
    assert config_of(settings).stages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_names_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
        found = page.parent / target if target else page
        assert found.exists(), target
        if anchor:
            heads = [
                re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")
                for head in re.findall(r"^#+ (.+)", found.read_text(), re.M)
            ]
            assert anchor in heads, f"{target}#{anchor}"
    for path in re.findall(r"`((?:tests|examples|benchmarks|src)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(xscalemixer\.[\w.]+)`", text):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.import_module(name), name


def test_every_public_name_and_command_is_in_the_page_of_verbs():
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert [name for name in xsm._LAZY if f"`xsm.{name}`" not in text] == []
    rows = dict(re.findall(r"^\| (Dataset|DataTree|shell).*? \| (.*) \|$", text, re.M))
    public = lambda kind: {name for name in vars(kind) if not name.startswith("_")}
    (commands,) = (action.choices for action in _parser()._actions if action.choices)
    expected = {"Dataset": public(DatasetAccessor), "DataTree": public(TreeAccessor), "shell": set(commands)}
    assert {kind: set(re.findall(r"`(\w+)`", row)) for kind, row in rows.items()} == expected
