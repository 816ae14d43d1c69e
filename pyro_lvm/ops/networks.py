"""Networks that learn or serve: in training they normalise by the batch and drop units out, elsewhere they do not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["serving"]


@contextmanager
def serving(
    *programs: Any,
    running: Callable[[], bool] = lambda: True,
    meet: Callable[[torch.nn.Module], None] = lambda module: None,
) -> Iterator[None]:
    """Let networks serve inside of the block: those that programs are, and all that are called in this thread.

    Args:
        programs: Modules, whose parts all serve; others count nothing.
        running: Whether a program is running: what is called elsewhere is no part of one.
        meet: Told of every module that a running program calls.
    """
    thread = threading.get_ident()
    switched: list[torch.nn.Module] = []

    def serve(module: torch.nn.Module) -> None:
        if module.training:
            module.training = False
            switched.append(module)

    def before(module: torch.nn.Module, arguments: Any) -> None:
        if threading.get_ident() == thread and running():
            serve(module)
            meet(module)

    for program in programs:
        for part in program.modules() if isinstance(program, torch.nn.Module) else ():
            serve(part)
    hook = register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()
        for part in switched:
            part.training = True
