"""Names that users may pass for guides and inferences, and what is meant when they pass none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine

from pyro_lvm.infer import EM, MCMC, SVI
from pyro_lvm.protocols import Inference, Sampler

__all__ = ["GUIDES", "INFERENCES", "MODELS", "choose_guide", "choose_inference", "discrete_sites", "restart_loss"]

INFERENCES: dict[str, type] = {"em": EM, "svi": SVI, "mcmc": MCMC}
GUIDES: dict[str, Callable] = {}
MODELS: dict[str, Callable] = {}
"""Guides and models by name; `pyro_lvm.catalog` fills them in, so that the engine imports neither."""


def continuous_sites(trace: poutine.Trace) -> list[str]:
    """Latent sites that cannot be summed out."""
    return [
        name for name in trace.stochastic_nodes if not getattr(trace.nodes[name]["fn"], "has_enumerate_support", False)
    ]


def discrete_sites(trace: poutine.Trace) -> list[str]:
    """Latent sites that can be summed out."""
    continuous = continuous_sites(trace)
    return [name for name in trace.stochastic_nodes if name not in continuous]


def choose_inference(inference: Any, model: Callable, trace: poutine.Trace) -> Any:
    """An inference object from what the user passed.

    Raises:
        ValueError: The name is unknown, or the inference cannot train this model.
    """
    continuous = continuous_sites(trace)
    if inference is None:
        inference = "svi" if continuous else "em"
    if isinstance(inference, str):
        if inference not in INFERENCES:
            raise ValueError(f"fit: expected inference to be one of {', '.join(INFERENCES)}; got {inference!r}.")
        inference = INFERENCES[inference]
    if isinstance(inference, type):
        inference = inference()
    if not isinstance(inference, (Inference, Sampler)):
        raise TypeError(
            f"fit: expected inference to be a name or an object with step() or run(); got {type(inference).__name__}."
        )
    if isinstance(inference, EM) and continuous:
        fn = trace.nodes[continuous[0]]["fn"]
        kind = type(getattr(fn, "base_dist", fn)).__name__
        raise ValueError(
            f"fit: EM needs every latent site to be discrete with a finite support; site '{continuous[0]}' ({kind}) is "
            "not. Drop its prior to make it a parameter, or use inference='svi' or 'mcmc'."
        )
    return inference


def choose_guide(guide: Any, model: Callable, trace: poutine.Trace, inference: Any) -> Callable | None:
    """A guide from what the user passed.

    Raises:
        ValueError: The name is unknown, or a guide was passed to an inference that takes none.
    """
    if guide is None and getattr(inference, "guide", None) is not None:
        return inference.guide
    if guide is not None and isinstance(inference, (EM, MCMC)):
        raise ValueError(
            f"fit: {type(inference).__name__} takes no guide; got {guide!r}. Use inference='svi', or leave it out."
        )
    if isinstance(inference, (EM, MCMC)) or not continuous_sites(trace):
        return None if isinstance(guide, (str, type)) else guide
    if guide is None:
        guide = "normal"
    if isinstance(guide, str):
        if guide not in GUIDES:
            raise ValueError(f"fit: expected guide to be one of {', '.join(GUIDES)}; got {guide!r}.")
        guide = GUIDES[guide]
    if isinstance(guide, type):
        guide = guide(model)
    if not callable(guide):
        raise TypeError(f"fit: expected guide to be a name or a Pyro program; got {type(guide).__name__}.")
    return guide


def restart_loss(result: Any) -> float:
    """What restarts are ranked by: best validation loss, else the mean of the last epochs."""
    history = result.history
    if "validation_loss" in history:
        return min(history["validation_loss"])
    losses = history["loss"]
    window = 1 if getattr(result.inference, "full_batch", False) else min(len(losses), 100)
    return sum(losses[-window:]) / window if losses else 0.0
