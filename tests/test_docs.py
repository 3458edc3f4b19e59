"""What the documentation shows runs, and what it names exists."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import volnet
from volnet import losses, nn, ops

ROOT = Path(__file__).parents[1]
MODULES = [
    module.name
    for module in pkgutil.walk_packages(volnet.__path__, "volnet.")
    if not module.name.endswith(("_C", "__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"optional package missing: {error.name}")
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize(
    "public", [getattr(m, n) for m in (ops, nn, losses) for n in m.__all__], ids=lambda f: f.__name__
)
def test_every_public_name_shows_an_example(public: object) -> None:
    assert ">>>" in (public.__doc__ or "")


def test_readme_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_features_name_tests_and_functions_that_exist() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    for path in re.findall(r"`(tests/[^`]+)`", text):
        assert list(ROOT.glob(path)), f"docs/features.md names {path}"
    for module, name in re.findall(r"`(losses|ops|nn)\.(\w+)`", text):
        assert hasattr({"losses": losses, "ops": ops, "nn": nn}[module], name), (
            f"docs/features.md names {module}.{name}"
        )
