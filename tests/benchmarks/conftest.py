"""Benchmarks are scripts: they are imported by path."""

import importlib.util
import sys
from pathlib import Path

import pyro
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    threads, validation = torch.get_num_threads(), pyro.settings.get("validate_distributions_pyro")

    def load(name):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    yield load
    torch.set_num_threads(threads)
    pyro.enable_validation(validation)
