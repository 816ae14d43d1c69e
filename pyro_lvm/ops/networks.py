"""Networks that learn or serve: in training they normalise by the batch and drop units out, elsewhere they do not."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = ["refused", "serving"]

# What torch says of layers, and what is meant by it.
REFUSALS = {
    r"Attempted to use an uninitialized parameter": "expected networks of known sizes; got a lazy layer that has not "
    "met rows yet. Give its sizes, or run the network once on rows before.",
    r"Expected more than 1 value per channel when training": "expected batches of two rows or more, as a layer of a "
    "network normalises by the batch; got one of a single row. Choose another batch_size; a DataLoader has drop_last.",
    r"running_mean should contain (?P<got>\d+) elements not (?P<own>\d+)": "expected {own} channels in the second axis "
    "of what a layer that normalises by the batch is given; got {got}. Where that axis is rows, of which several draws "
    "are taken at once, flatten the axes before the last one ahead of the network, or pass vectorize=False.",
}


def refused(error: Exception) -> str | None:
    """What a layer expected, as a sentence, if it is a layer that torch's error comes from."""
    for pattern, sentence in REFUSALS.items():
        if found := re.search(pattern, str(error)):
            return sentence.format(**found.groupdict())
    return None


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
