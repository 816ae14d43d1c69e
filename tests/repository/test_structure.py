"""Facts about the checkout: packaging, arrows between packages, exports, the README."""

import ast
import inspect
import re
import tomllib
from pathlib import Path

import pytest

import pyro_lvm as lvm

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"pyro_lvm": ROOT / "pyro_lvm", "pyro_lvm.models": ROOT / "models", "pyro_lvm.guides": ROOT / "guides"}
SOURCES = [*(ROOT / "pyro_lvm").rglob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "guides").rglob("*.py")]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_package_list_names_every_folder():
    found = {"pyro_lvm.models", "pyro_lvm.guides"}
    for path in (ROOT / "pyro_lvm").rglob("__init__.py"):
        inside = path.parent.relative_to(ROOT).parts
        if "models" not in inside and "guides" not in inside:
            found.add(".".join(inside))
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])
    for name in ("models", "guides"):
        assert (ROOT / "pyro_lvm" / name).is_symlink()


@pytest.mark.parametrize("folder", ["models", "guides"])
def test_models_and_guides_know_no_inference(folder):
    for path in (ROOT / folder).glob("*.py"):
        for name in imports(path):
            for forbidden in ("infer", "training", "evidence", "diagnostics", "catalog", "cli"):
                assert not name.startswith(f"pyro_lvm.{forbidden}"), f"{path.name} imports {name}"
            if folder == "models":
                assert not name.startswith(("pyro_lvm.guides", "pyro.infer")), f"{path.name} imports {name}"


def test_the_engine_imports_no_model_and_no_guide():
    allowed = {"demo.py", "__init__.py"}
    for path in (ROOT / "pyro_lvm").rglob("*.py"):
        inside = path.relative_to(ROOT / "pyro_lvm").parts
        if inside[0] in ("catalog", "cli", "models", "guides", "testing") or (
            len(inside) == 1 and inside[0] in allowed
        ):
            continue
        for name in imports(path):
            assert not name.startswith(("pyro_lvm.models", "pyro_lvm.guides")), f"{path} imports {name}"


def test_only_one_folder_touches_private_names_of_pyro():
    for path in SOURCES:
        if path.parent.name == "_pyro":
            continue
        for name in imports(path):
            if name.startswith("pyro."):
                assert "._" not in name, f"{path} imports {name}"


def test_every_public_name_is_exported_and_documented():
    for module in (lvm, lvm.infer, lvm.models, lvm.guides, lvm.distributions, lvm.handlers, lvm.diagnostics):
        for name in module.__all__:
            thing = getattr(module, name)
            if not name.startswith("__") and callable(thing):
                assert (thing.__doc__ or "").strip(), f"{module.__name__}.{name} has no docstring"


def test_modules_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 360}
    assert not long


def test_the_readme_lists_the_catalog_and_its_files():
    readme = (ROOT / "README.md").read_text()
    for name in lvm.CATALOG:
        assert f"`{name}`" in readme
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize("name", lvm.CATALOG)
def test_a_model_has_one_reference_wherever_it_is_named(name):
    """First authors and years are the same in the catalog, in the README and in the class or its module."""
    entry = lvm.CATALOG[name]
    row = re.search(rf"^\| `{name}` .*\| ([^|]*) \|$", (ROOT / "README.md").read_text(), flags=re.M).group(1)
    cited = re.findall(r"([^\W\d]+)[^;()]*\((\d{4})\)", entry.reference)
    assert cited
    if not row.startswith("the same"):
        assert re.findall(r"([^\W\d]+)[^;()]*\((\d{4})\)", row) == cited
    documented = inspect.getsource(inspect.getmodule(entry.model))
    for author, year in cited:
        assert re.search(rf"{author}[^\n]*\({year}\)", documented), (author, year)


def test_the_readme_examples_run(tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert examples
    monkeypatch.chdir(tmp_path)
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
