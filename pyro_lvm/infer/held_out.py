"""Rows scored without what stands outside of their plate: priors of parameters, and a guide's laws over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_lvm.infer.structure import row_plate, structure

__all__ = ["rows_alone"]


class _InPlate(Messenger):
    """Counts the densities of sites in one plate only; discrete sites that are summed out keep theirs."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if not _in_plate(msg, self.plate) and not _summed_out(msg):
            msg["mask"] = False


def rows_alone(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Callable, Callable]:
    """Model and guide of which only the plate of the rows counts.

    Args:
        model: Any Pyro program.
        guide: Any Pyro program over its continuous sites.
        args: Their arguments.
        kwargs: Their keyword arguments.

    Returns:
        Both, wrapped; as they are if no row is observed in a plate, or if the guide draws latent sites of rows outside
        of it, as one law over everything does: its parts cannot be told apart.
    """
    traces = [structure(program, args, kwargs, fresh=False) for program in (model, guide)]
    ours, theirs = ([site for site in trace.nodes.values() if site["type"] == "sample"] for trace in traces)
    plate = row_plate(traces[0])
    rows = [site for site in ours if _in_plate(site, plate) and not _summed_out(site)]
    latent = any(not site["is_observed"] for site in rows)
    joint = any(site["infer"].get("is_auxiliary") and not _in_plate(site, plate) for site in theirs)
    if not any(site["is_observed"] for site in rows) or (latent and joint):
        return model, guide
    handler = _InPlate(plate)
    return handler(model), handler(guide)


def _in_plate(msg: Any, plate: str) -> bool:
    return any(frame.name == plate for frame in msg["cond_indep_stack"])


def _summed_out(msg: Any) -> bool:
    return msg["infer"].get("enumerate") == "parallel"
