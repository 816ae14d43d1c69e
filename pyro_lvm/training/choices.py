"""Names that users may pass for guides and inferences, and what is meant when they pass none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from pyro_lvm import _pyro
from pyro_lvm.distributions.spike_and_slab import SpikeAndSlab
from pyro_lvm.infer import (
    EM,
    MCMC,
    NVIL,
    RELAX,
    SVI,
    VIMCO,
    ContrastiveDivergence,
    CoordinateAscent,
    EvidenceBound,
    ImportanceWeighted,
    LeaveOneOut,
    WakeSleep,
)
from pyro_lvm.infer.structure import row_plate
from pyro_lvm.protocols import Inference, Sampler

__all__ = [
    "GUIDES",
    "INFERENCES",
    "LADDERS",
    "MODELS",
    "OBJECTIVES",
    "PAIRS",
    "choose_guide",
    "choose_inference",
    "closer_guides",
    "describe",
    "discrete_sites",
    "discrete_vectors",
    "draws_sites_of_rows",
    "restart_loss",
]

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "ContrastiveDivergence": ContrastiveDivergence,
    "EvidenceBound": EvidenceBound,
    "ImportanceWeighted": ImportanceWeighted,
    "LeaveOneOut": LeaveOneOut,
    "NVIL": NVIL,
    "RELAX": RELAX,
    "VIMCO": VIMCO,
    "WakeSleep": WakeSleep,
}
"""Losses of `SVI` by class name: what files may name, with their plain options."""

INFERENCES: dict[str, Callable[..., Any]] = {
    "em": EM,
    "squarem": lambda: EM(acceleration="squarem"),
    "svi": SVI,
    "coordinate-ascent": CoordinateAscent,
    "mcmc": MCMC,
    "leave-one-out": lambda: SVI(loss=LeaveOneOut()),
    "vimco": lambda: SVI(loss=VIMCO()),
    "nvil": lambda: SVI(loss=NVIL()),
    "relax": lambda: SVI(loss=RELAX()),
    "importance-weighted": lambda: SVI(loss=ImportanceWeighted()),
    "wake-sleep": lambda: SVI(
        loss=WakeSleep(num_samples=5, wake_guide=1.0), learning_rate=0.03, schedule="linear"
    ),  # reweighted: in the same time it learns more than with one draw
    "up-down": lambda: SVI(loss=ContrastiveDivergence(persistent=True, base=WakeSleep()), learning_rate=0.003),
    "cd": lambda: SVI(loss=ContrastiveDivergence(), learning_rate=0.003, schedule="linear"),
    "pcd": lambda: SVI(loss=ContrastiveDivergence(persistent=True), learning_rate=0.003, schedule="linear"),
}
"""Inferences by name: a class, or a function that makes one with an objective, as in `"cd": lambda: SVI(loss=...)`."""

GUIDES: dict[str, Callable] = {}
MODELS: dict[str, Callable] = {}
"""Guides and models by name; `pyro_lvm.catalog` fills them in, so that the engine imports neither."""

PAIRS: dict[type, tuple[str | None, str | None]] = {}
"""The inference and the guide, by name, that go with a model whose sites do not tell; filled in by the catalog.

The inference is None where sites tell it, and not the guide.
"""


def pair_of(model: Callable) -> tuple[str | None, str | None]:
    """The inference and the guide of a model's pair; None where its sites tell, as those of priors do."""
    known = None if getattr(model, "priors", None) else PAIRS.get(type(model))
    return known or (None, None)


LADDERS: dict[type, tuple[str, ...]] = {}
"""The guides of a model, by name, each as close to the posterior as those before it; filled in by the catalog."""

GUIDES_OF_ROWS: dict[type, str] = {
    torch.distributions.Normal: "exact-gaussian",
    torch.distributions.Laplace: "sparse-codes",
    torch.distributions.StudentT: "sparse-codes",
    SpikeAndSlab: "sparse-codes",
}
"""The guide by which EM takes continuous sites of rows: their posterior is normal, perhaps, or its mode is sparse."""


def closer_guides(model: Callable, guide: Any, trace: poutine.Trace, sites: Collection[str]) -> list[str]:
    """Guides by name that a model takes and that may come closer to its posterior than the one at hand.

    Args:
        model: Any Pyro program.
        guide: The guide at hand.
        trace: Of the model.
        sites: Latent sites of rows that the guide draws.
    """
    laws = [getattr(trace.nodes[name]["fn"], "base_dist", trace.nodes[name]["fn"]) for name in sites]
    if any(isinstance(law, SpikeAndSlab) for law in laws):  # others do not know that zero has a probability
        return []
    vectors = any(getattr(law.support, "is_discrete", False) for law in laws)
    names = LADDERS.get(type(model), () if vectors else ("local",))
    at = next((i + 1 for i, name in enumerate(names) if type(guide) is GUIDES[name]), 0)
    return list(names[at:])


def unsummed_sites(trace: poutine.Trace) -> list[str]:
    """Latent sites that cannot be summed out: continuous ones, and vectors of discrete ones."""
    return [
        name for name in trace.stochastic_nodes if not getattr(trace.nodes[name]["fn"], "has_enumerate_support", False)
    ]


def describe(inference: Any) -> str:
    """The inference's class, and its objective's if that is one of ours, not the default: "SVI with WakeSleep"."""
    kind, objective = type(inference).__name__, type(getattr(inference, "objective", None))
    named = objective in OBJECTIVES.values() and objective is not EvidenceBound
    return f"{kind} with {objective.__name__}" if named else kind


def discrete_sites(trace: poutine.Trace) -> list[str]:
    """Latent sites that can be summed out."""
    unsummed = unsummed_sites(trace)
    return [name for name in trace.stochastic_nodes if name not in unsummed]


def discrete_vectors(trace: poutine.Trace) -> list[str]:
    """Latent sites that are vectors of discrete values, which no default guide can draw."""
    return [n for n in unsummed_sites(trace) if getattr(trace.nodes[n]["fn"].support, "is_discrete", False)]


def choose_inference(inference: Any, model: Callable, trace: poutine.Trace, guide: Any = None) -> Any:
    """An inference object from what the user passed; by default one that takes the guide that was passed.

    Raises:
        ValueError: The name is unknown, or the inference cannot train this model.
    """
    unsummed = unsummed_sites(trace)
    if inference is None:
        inference = pair_of(model)[0] or ("svi" if unsummed else "em")
        takes = getattr(INFERENCES[inference](), "guides", None)
        if unsummed and takes is not None and _name_of(guide) not in (None, *takes):
            inference = "svi"
    if isinstance(inference, str):
        if inference not in INFERENCES:
            raise ValueError(f"fit: expected inference to be one of {', '.join(INFERENCES)}; got {inference!r}.")
        inference = INFERENCES[inference]()
    if isinstance(inference, type):
        inference = inference()
    if not isinstance(inference, (Inference, Sampler)):
        raise TypeError(
            f"fit: expected inference to be a name or an object with step() or run(); got {type(inference).__name__}."
        )
    local = _of_rows(trace, unsummed)
    if (
        isinstance(inference, (EM, CoordinateAscent))
        and local
        and not (isinstance(inference, EM) and _guide_of_rows(trace, local))
    ):
        fn = trace.nodes[local[0]]["fn"]
        kind = type(getattr(fn, "base_dist", fn)).__name__
        raise ValueError(
            f"fit: {type(inference).__name__} needs the latent sites of every row to be discrete with a finite "
            f"support; site '{local[0]}' ({kind}) is not. Use inference='svi' or 'mcmc'."
        )
    if isinstance(inference, CoordinateAscent) and not unsummed:
        raise ValueError(
            "fit: CoordinateAscent needs parameters with priors; the model's are points. Give them priors "
            "(priors=True for models of this package), or use inference='em'."
        )
    return inference


def _name_of(guide: Any) -> str | None:
    """The name of a guide that has one."""
    return next((name for name, kind in GUIDES.items() if guide in (name, kind) or type(guide) is kind), None)


def draws_sites_of_rows(trace: poutine.Trace) -> bool:
    """Whether a guide has to draw sites in the plate of the rows."""
    return bool(_of_rows(trace, unsummed_sites(trace)))


def _of_rows(trace: poutine.Trace, names: list[str]) -> list[str]:
    """Those sites that stand in the plate of the rows."""
    plate = row_plate(trace)
    return [n for n in names if any(f.name == plate for f in trace.nodes[n]["cond_indep_stack"])]


def _guide_of_rows(trace: poutine.Trace, names: list[str]) -> str:
    """The guide by which EM takes sites of rows, by name, if there are some of one law that it knows; else ""."""
    laws = [getattr(trace.nodes[name]["fn"], "base_dist", trace.nodes[name]["fn"]) for name in names]
    for kind, guide in GUIDES_OF_ROWS.items():
        if laws and all(isinstance(law, kind) for law in laws):
            return guide
    return ""


def choose_guide(guide: Any, model: Callable, trace: poutine.Trace, inference: Any) -> Callable | None:
    """A guide from what the user passed.

    Raises:
        ValueError: The name is unknown, or the inference cannot use the guide.
    """
    if guide is None and getattr(inference, "guide", None) is not None:
        return inference.guide
    takes, name = getattr(inference, "guides", None), type(inference).__name__
    if isinstance(guide, str) and guide not in GUIDES:
        raise ValueError(f"fit: expected guide to be one of {', '.join(GUIDES)}; got {guide!r}.")
    if guide is not None and takes == ():
        raise ValueError(f"fit: {name} takes no guide; got {guide!r}. Use inference='svi', or leave it out.")
    unsummed = unsummed_sites(trace)
    if not unsummed:
        if guide is not None and takes is not None:
            raise ValueError(f"fit: {name} of a model without priors takes no guide; got {guide!r}. Leave it out.")
        kind = guide if isinstance(guide, type) else type(guide)
        if kind is str or issubclass(kind, AutoGuide):
            raise ValueError(
                f"fit: expected a guide only where there is something to draw: {describe(inference)} sums out every "
                f"latent site of this model, or all are known; got {guide!r}. Leave it out."
            )
        return _made(guide, model)
    if takes == ():
        return None
    of_rows = isinstance(inference, EM) and _guide_of_rows(trace, _of_rows(trace, unsummed))
    if of_rows and guide == "map":
        raise ValueError(f"fit: {name} takes these sites of rows by guide {of_rows!r}; got 'map'. Pass that.")
    if guide is None:
        guide = of_rows or (takes[0] if takes else (pair_of(model)[1] or "normal"))
    if guide in ("normal", "multivariate-normal", "map"):
        vectors = discrete_vectors(trace)
        if vectors:
            raise ValueError(
                f"fit: site '{vectors[0]}' is a vector of discrete values, which guide {guide!r} cannot hold. "
                "Pass a guide that samples it."
            )
    if isinstance(guide, str):
        if takes is not None and guide not in takes:
            raise ValueError(f"fit: {name} takes guide {' or '.join(map(repr, takes))}; got {guide!r}.")
        guide = GUIDES[guide]
    guide = _made(guide, model)
    trained_by = getattr(guide, "trained_by", None)
    if trained_by is not None and not isinstance(inference, type(INFERENCES[trained_by]())):
        raise ValueError(
            f"fit: expected a guide that {describe(inference)} can train; got {type(guide).__name__}, which only "
            f"inference='{trained_by}' does, of models whose continuous sites are parameters with conjugate priors. "
            f"Pass that inference, or another guide, as {PAIRS.get(type(model), (None, 'normal'))[1]!r}."
        )
    return guide


def _made(guide: Any, model: Callable) -> Callable | None:
    """A guide of the model, from a class if it is one.

    Raises:
        TypeError: It is no program.
        ValueError: It was made from another model.
    """
    guide = guide(model) if isinstance(guide, type) else guide
    if guide is not None and not callable(guide):
        raise TypeError(f"fit: expected guide to be a name or a Pyro program; got {guide!r}.")
    theirs, ours = _pyro.made_from(guide), _pyro.without_handlers(model)
    if isinstance(theirs, torch.nn.Module) and theirs is not ours:
        kind = type(guide).__name__
        raise ValueError(
            f"fit: expected a guide made from the model that is fitted, which {kind} runs itself; got one made from "
            f"another. Pass guide={kind}, the class, or make it from this model."
        )
    return guide


def restart_loss(result: Any) -> float:
    """What restarts are ranked by: best validation loss, else the mean of the last epochs."""
    history = result.history
    if "validation_loss" in history:
        return min(history["validation_loss"])
    losses = history["loss"]
    window = 1 if getattr(result.inference, "full_batch", False) else min(len(losses), 100)
    return sum(losses[-window:]) / window if losses else 0.0
