"""Latent sites of given rows: posteriors, most probable states, joint draws; and new rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.diagnostics.inner_latents import inner_draws, inner_posterior, inner_states
from pyro_lvm.diagnostics.paths import decoded, discrete_kinds, drawn, how_to_hide_states, smoothed
from pyro_lvm.diagnostics.row_latents import row_draws, row_guide, row_tables
from pyro_lvm.distributions import HMM, LinearGaussianChain
from pyro_lvm.evidence.exact import log_likelihood, nesting
from pyro_lvm.infer.enumeration import expect
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops.threads import fitting_threads
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.data import Arguments
from pyro_lvm.training.guide_draws import draws_rows
from pyro_lvm.training.labels import labels_of
from pyro_lvm.training.sites import check_plate
from pyro_lvm.training.tensors import as_tensor

if TYPE_CHECKING:
    from pyro_lvm.training.result import Fit

__all__ = ["draw_responsibilities", "generate", "most_probable", "posterior_draws", "responsibilities"]

AVERAGED_DRAWS = 200


def thinned(fit: Fit, count: int) -> list[dict[str, Tensor]]:
    """Evenly spaced draws of a fit, chains one after another; one empty draw for a point fit."""
    if not fit.latent:
        return [{}]
    flat = {name: values.flatten(0, 1) for name, values in fit.draws.items()}
    total = len(next(iter(flat.values())))
    keep = torch.linspace(0, total - 1, min(count, total)).round().long().tolist()
    return [{name: values[i] for name, values in flat.items()} for i in keep]


def draw_responsibilities(
    fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Posterior of the discrete sites, one dict per draw of the continuous ones."""
    arguments = arguments.unweighted()  # what a row is does not depend on how often it counts
    with fit.scope(), _pyro.validation(False), fitting_threads(arguments.main.numel()):
        depth = nesting(fit, arguments)
        for given in draws:
            model = fit.program_at(given)
            with possible_rows(fit, arguments):
                marginals = expect(model, depth, arguments.args, arguments.kwargs).marginals()
            if not marginals:
                hint = how_to_hide_states(fit, arguments, "Its parameters are in fit.params.")
                raise ValueError(f"predict: the model has no discrete latent site. {hint}")
            yield marginals


@contextmanager
def possible_rows(fit: Fit, arguments: Arguments) -> Iterator[None]:
    """Where a posterior fails, name the rows that have none, if there are such rows."""
    try:
        yield
    except (NonFiniteLoss, RuntimeError) as error:
        try:
            values = log_likelihood(fit, arguments).values
        except ValueError:
            raise error from None
        rows = (~torch.isfinite(values)).nonzero().flatten().tolist()
        if not rows:
            raise
        which = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]}, {rows[1]}{', ...' if len(rows) > 2 else ''}"
        raise ValueError(
            f"Fit: expected rows that are possible under the model; got {len(rows)} of probability zero ({which}), "
            "whose latent sites have no posterior. Drop them, or check their values."
        ) from error


def responsibilities(fit: Fit, arguments: Arguments) -> dict[str, Tensor]:
    """Posterior of every discrete site and hidden path, averaged over draws with their labels aligned."""
    draws = thinned(fit, AVERAGED_DRAWS)
    if draws_rows(fit):
        return row_tables(fit, arguments, draws)
    enumerated, hidden = discrete_kinds(fit, arguments)
    if not (enumerated or hidden) and (inside := inner_posterior(fit, arguments, draws)):
        return inside
    found = _averaged(fit, arguments, draws) if enumerated or not hidden else {}
    if hidden:
        with possible_rows(fit, arguments):
            paths = smoothed(fit, arguments, draws, common_states(fit, arguments, draws))
        found.update({name: arguments.returned(table) for name, table in paths.items()})
    return found


def _averaged(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    tables = list(draw_responsibilities(fit, arguments, draws))
    if len(tables) == 1:
        return tables[0]
    stacked = {name: torch.stack([t[name] for t in tables]) for name in tables[0]}
    if len(stacked) == 1:
        from pyro_lvm.diagnostics.labels import permutations

        ((name, table),) = stacked.items()
        order = permutations(table)
        return {name: table.gather(-1, order.unsqueeze(1).expand_as(table)).mean(0)}
    return {name: table.mean(0) for name, table in stacked.items()}


def common_states(fit: Fit, arguments: Arguments, draws: list[dict[str, Tensor]]) -> Tensor | None:
    """The order in which the states of every draw mean the same, if there are several draws and orders."""
    from pyro_lvm.diagnostics.labels import common_order

    return common_order(fit, arguments, draws) if len(draws) > 1 else None


def most_probable(fit: Fit, arguments: Arguments) -> dict[str, Tensor]:
    """The jointly most probable states at a point; the most probable state of each site under a posterior.

    Hidden paths are decoded as a whole either way. Of sites that a guide draws: the most probable state of each.
    """
    if draws_rows(fit):
        return {name: table.argmax(-1) for name, table in responsibilities(fit, arguments).items()}
    enumerated, hidden = discrete_kinds(fit, arguments)
    found: dict[str, Tensor] = {}
    if not (enumerated or hidden) and (inside := inner_states(fit, arguments, thinned(fit, AVERAGED_DRAWS))):
        return inside
    if len(enumerated) > 1 and not fit.latent:
        found = _discrete(fit, arguments, {}, temperature=0)
    elif enumerated or not hidden:
        table = _averaged(fit, arguments, thinned(fit, AVERAGED_DRAWS))
        found = {name: values.argmax(-1) for name, values in table.items()}
    if hidden:
        draws = thinned(fit, AVERAGED_DRAWS)
        with possible_rows(fit, arguments):
            paths = decoded(fit, arguments, draws, common_states(fit, arguments, draws))
        found.update({name: arguments.returned(path) for name, path in paths.items()})
    return found


def _discrete(fit: Fit, arguments: Arguments, given: dict[str, Tensor], temperature: int) -> dict[str, Tensor]:
    arguments = arguments.unweighted()
    with fit.scope(), _pyro.validation(False), _pyro.exact_log_sums(), torch.no_grad(), possible_rows(fit, arguments):
        depth = nesting(fit, arguments)
        model = config_enumerate(fit.program_at(given))
        decoded = infer_discrete(model, first_available_dim=-1 - depth, temperature=temperature)
        trace = poutine.trace(decoded).get_trace(*arguments.args, **arguments.kwargs)
    return {
        name: trace.nodes[name]["value"].expand(trace.nodes[name]["fn"].shape())
        for name in trace.stochastic_nodes
        if trace.nodes[name]["infer"].get("enumerate") == "parallel"
    }


def posterior_draws(fit: Fit, arguments: Arguments, count: int) -> dict[str, Tensor]:
    """Joint draws of continuous and discrete sites given the rows."""
    if draws_rows(fit):
        return _drawn_by_guide(fit, arguments, count)
    draws = thinned(fit, count)
    chosen = [draws[i % len(draws)] for i in range(count)]
    enumerated, hidden = discrete_kinds(fit, arguments)
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        joint = chosen
        if enumerated:
            joint = [{**given, **_discrete(fit, arguments, given, temperature=1)} for given in chosen]
        found = {name: torch.stack([j[name] for j in joint]) for name in joint[0]}
        if hidden:
            with possible_rows(fit, arguments):
                found.update(drawn(fit, arguments, joint if enumerated else draws, count))
        if not hidden:
            found.update(inner_draws(fit, arguments, joint if enumerated else draws, count))
    if not found:
        raise ValueError(
            f"posterior: expected a model with latent sites; {fit.name} has none. Its parameters are in fit.params."
        )
    return found


def _drawn_by_guide(fit: Fit, arguments: Arguments, count: int) -> dict[str, Tensor]:
    """Draws of the guide's sites, and of the discrete ones that it leaves given those."""
    shared = thinned(fit, count)
    joint: list[dict[str, Tensor]] = []
    with torch.random.fork_rng():
        torch.manual_seed(fit.seed)
        guide = row_guide(fit, arguments)
        for i in range(count):
            given = {**shared[i % len(shared)], **row_draws(fit, guide, arguments)}
            if i == 0:
                left = _unknown_discrete(fit, arguments, given)
            joint.append({**given, **(_discrete(fit, arguments, given, temperature=1) if left else {})})
    return {name: torch.stack([j[name] for j in joint]) for name in joint[0]}


def _unknown_discrete(fit: Fit, arguments: Arguments, given: dict[str, Tensor]) -> bool:
    """Whether the model has discrete sites beyond those given."""
    with fit.scope(), torch.no_grad(), _pyro.validation(False):
        trace = _pyro.plain_trace(fit.program_at(given), arguments.args, arguments.kwargs)
    return any(trace.nodes[name]["fn"].has_enumerate_support for name in trace.stochastic_nodes)


def generate(
    fit: Fit, n: int, covariates: dict[str, Any], num_steps: int | None = None, means: bool = False
) -> dict[str, Tensor]:
    """New rows of every observed site, each from a draw of its own; or the means of rows given their latent sites."""
    covariates = _checked(fit, n, covariates)
    if num_steps is None and getattr(fit.model, "sequences", False):
        num_steps = next((value.shape[1] for value in covariates.values()), None)
    draws = thinned(fit, n)
    counts = torch.bincount(torch.arange(n) % len(draws), minlength=len(draws)).tolist()
    parts: list[dict[str, Tensor]] = []
    with fit.scope(), torch.no_grad(), _pyro.validation(False):
        start = 0
        for given, size in zip(draws, counts, strict=True):
            part = {k: v[start : start + size] for k, v in covariates.items()}
            parts.append(_generate(fit, size, given, part, num_steps, means))
            start += size
    rows = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    shuffled = torch.randperm(n) if len(draws) > 1 and not covariates else torch.arange(n)
    return {name: values[shuffled] for name, values in rows.items()}


def _checked(fit: Fit, n: int, covariates: dict[str, Any]) -> dict[str, Tensor]:
    if stray := labels_of(fit.model, covariates):
        raise ValueError(f"sample: expected arguments of {fit.name}; got '{min(stray)}'. Rename it, or leave it out.")
    mine, given = next(iter(fit.tensors().values()), torch.empty(0)), {}
    for name, value in covariates.items():
        tensor = as_tensor(value, name)
        given[name] = tensor.to(mine if tensor.is_floating_point() else mine.device)
    if isinstance(fit.model, LatentVariableModel):
        fit.model.check_covariates(n, **given)
    check_plate(fit, fit.prototype(n))
    return given


def _generate(
    fit: Fit, size: int, given: dict[str, Tensor], covariates: dict[str, Any], num_steps: int | None, means: bool
) -> dict[str, Tensor]:
    prototype = fit.prototype(size)
    if num_steps is not None:
        prototype = prototype.lasting(num_steps)
    if isinstance(fit.model, LatentVariableModel) and not covariates:
        steps = prototype.main.shape[1] if fit.model.sequences else None
        model, args, kwargs = fit.model, (), {"size": size, **({} if steps is None else {"num_steps": steps})}
    else:
        model = poutine.uncondition(_Lasting()(fit.model))
        args, kwargs = prototype.args, {**prototype.kwargs, **covariates}
    trace = poutine.trace(poutine.condition(model, given)).get_trace(*args, **kwargs)
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    observed = {name: site for name, site in sites.items() if site["infer"].get("was_observed")}
    returned = trace.nodes["_RETURN"]["value"]
    if means:
        shown = observed or {name: site for name, site in sites.items() if site["value"] is returned}
        return {name: site["fn"].mean for name, site in shown.items()}
    return {name: site["value"] for name, site in observed.items()} or {"x": returned}


class _Lasting(Messenger):
    """Let a site of sequences that leaves its number of steps to the data draw as many as the data have."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if isinstance(fn, HMM) and fn.num_steps is None and msg["value"] is not None:
            steps = msg["value"].shape[-fn.event_dim]
            msg["fn"] = fn.clamp(torch.full((steps,), -1, device=msg["value"].device))
        if isinstance(fn, LinearGaussianChain) and fn.num_steps is None and msg["value"] is not None:
            msg["fn"] = fn.lasting(msg["value"].shape[-2])
