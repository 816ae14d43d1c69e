"""Deriving the plan: the graph between parameters and distribution arguments, probed site by site."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

import pyro_lvm.infer.families  # noqa: F401 - registers the closed forms
from pyro_lvm.infer.blocks import Blocks, find_blocks, fixed_noise
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import Argument, ClosedForm, closed_form, innermost
from pyro_lvm.infer.parameters import Parameter
from pyro_lvm.infer.plan import ParameterPlan, Plan, PriorUse, Use
from pyro_lvm.infer.regression import find_regressions
from pyro_lvm.ops.cells import compact

__all__ = ["make_plan", "refresh", "strategy_of"]

# Of products of so many parameters, all but one of them zero, the one is still seen.
ORDERS = 4


def make_plan(expectation: Expectation, least_squares: bool = False) -> Plan:
    """Derive every parameter's M-step from the graph between parameters and distribution arguments.

    Args:
        expectation: An E-step; a few rows do.
        least_squares: Whether to look for regressions too.
    """
    plans = {
        name: ParameterPlan(name, tuple(parameter.value.shape))
        for name, parameter in expectation.parameters.items()
        if parameter.unconstrained.requires_grad
    }
    for factor in expectation.factors.values():
        _add_uses(plans, factor, expectation)
    for factor in expectation.factors.values():
        _add_priors(plans, factor, expectation)
    if least_squares:
        _add_regressions(plans, expectation)
    for plan in plans.values():
        plan.unify()
    priors = frozenset(prior.site for plan in plans.values() for prior in plan.priors)
    return Plan(strategy_of(expectation), plans, frozenset(expectation.factors), priors)


def strategy_of(expectation: Expectation) -> str:
    """How the E-step is done, in a few words."""
    if expectation.chains:
        return " and ".join(chain.describe() for chain in expectation.chains)
    latent = [
        f"{name} ({factor.value.shape[factor.site['infer']['_enumerate_dim'] - factor.fn.event_dim]} states)"
        for name, factor in expectation.factors.items()
        if factor.enumerated
    ]
    shown = ", ".join(latent[:4]) + (f" and {len(latent) - 4} more sites" if len(latent) > 4 else "")
    if latent:
        return f"exact enumeration of {shown}, one backward pass"
    laws = {name: getattr(innermost(factor.fn), "summed_out", "") for name, factor in expectation.factors.items()}
    inside = [f"{what} of {name}, summed out exactly by its law" for name, what in laws.items() if what]
    return " and ".join(inside) or "nothing is latent"


def refresh(plan: Plan, expectation: Expectation) -> bool:
    """Find selections that follow the data anew; False if the plan no longer fits the program."""
    learned = {name for name, p in expectation.parameters.items() if p.unconstrained.requires_grad}
    if plan.parameters.keys() != learned or plan.sites != frozenset(expectation.factors):
        return False
    for entry in plan.closed:
        uses = list(entry.uses)
        for i, use in enumerate(uses):
            factor = expectation.factors[use.site]
            fn = innermost(factor.fn)
            if closed_form(fn) is not use.form:
                return False
            tensor = use.argument.read(fn)
            if use.varies:
                found = _find_use(factor, use.form, use.argument, tensor, expectation.parameters[entry.name])
                if isinstance(found, str):
                    return False
                uses[i] = found
            elif tensor.shape[: tensor.dim() - use.argument.event_dim] != use.blocks.batch or not _still_selects(
                use, tensor, expectation.parameters[entry.name]
            ):
                return False
        if any(use.varies for use in uses):
            entry.uses = uses
            entry.unify()
            if entry.reason:
                return False
    return True


def _still_selects(use: Use, tensor: Tensor, parameter: Parameter) -> bool:
    """Whether an argument has the values that its blocks say: the selection may follow an argument of the program."""
    if use.view.normalised or use.view.matrix:
        return True
    with torch.no_grad():
        expected = use.blocks.read(parameter.value.detach())
        found = use.view.encode(tensor.detach())
        expected = expected.to(found.dtype)
        return torch.equal(found, expected) or torch.allclose(found, expected, rtol=1e-4, atol=0.0, equal_nan=True)


def _add_uses(plans: dict[str, ParameterPlan], factor: Factor, expectation: Expectation) -> None:
    fn = innermost(factor.fn)
    form = closed_form(fn)
    tensors = [argument.read(fn) for argument in form.arguments] if form else []
    inputs = tensors or _tensors_of(fn)
    touched: dict[str, list[int]] = {}
    known = expectation.parameters.values()
    for name, parameter in expectation.parameters.items():
        if name not in plans:
            continue
        hits = [i for i, tensor in enumerate(inputs) if _depends(tensor, parameter, known)]
        if form and not hits:  # of a law with one state no density depends, but it has a posterior all the same
            hits = [i for i in _certain(form, tensors) if _selects(factor, form, i, tensors, parameter)]
        if hits:
            touched[name] = hits
        elif tensors and any(_depends(tensor, parameter, known) for tensor in _tensors_of(fn)):
            plans[name].sites = (*plans[name].sites, factor.name)
            plans[name].reason = f"the closed form of '{factor.name}' ({type(fn).__name__}) leaves it out"
    for name, hits in touched.items():
        plan = plans[name]
        plan.sites = (*plan.sites, factor.name)
        plan.roles += [(factor.name, form.arguments[i].name if form else "") for i in hits]
        own = factor.site["infer"].get("m_step")
        plan.own = factor.name if callable(own) else plan.own
        if own == "gradient":
            plan.reason = f"site '{factor.name}' asks for gradient steps"
        if plan.reason or plan.own:
            continue
        if form is None:
            plan.reason = f"site '{factor.name}' ({type(fn).__name__}) has no closed form"
            continue
        for i in hits:
            others = [o for o, h in touched.items() if o != name and i in h]
            use = _find_use(factor, form, form.arguments[i], tensors[i], expectation.parameters[name])
            if others and isinstance(use, Use):  # by accident: the others are zero just now
                use = "it is computed from the parameter, not selected from it"
            if isinstance(use, str):
                also = f" (with {', '.join(others)})" if others else ""
                plan.reason = f"{factor.name}.{form.arguments[i].name}: {use}{also}"
                break
            plan.uses.append(use)


def _add_priors(plans: dict[str, ParameterPlan], factor: Factor, expectation: Expectation) -> None:
    """Sites whose value is a parameter."""
    if factor.enumerated or not isinstance(factor.value, Tensor) or not factor.value.requires_grad:
        return
    prior = innermost(factor.fn)
    for name, plan in plans.items():
        parameter = expectation.parameters[name]
        if not _depends(factor.value, parameter, expectation.parameters.values()):
            continue
        plan.sites = (*plan.sites, factor.name)
        plan.roles.append((factor.name, "value"))
        if plan.reason or not plan.uses:
            plan.reason = plan.reason or "only its prior depends on it"
            continue
        use = plan.uses[0]
        blocks = find_blocks(compact(factor.value, use.argument.event_dim), parameter.value, use.argument.event_dim)
        if not isinstance(blocks, Blocks) or blocks.factor is not None:
            plan.reason = f"site '{factor.name}' is computed from it"
            continue
        conjugate = use.argument.conjugate_to(use.view, prior)
        plan.priors.append(PriorUse(factor.name, blocks, type(prior).__name__, conjugate))


def _add_regressions(plans: dict[str, ParameterPlan], expectation: Expectation) -> None:
    """Locations that are computed from parameters, if linearly."""
    asked = {name for name, factor in expectation.factors.items() if "m_step" in factor.site["infer"]}
    failed = [name for name, plan in plans.items() if plan.reason and asked.isdisjoint(plan.sites)]
    regressions, reasons = find_regressions(expectation, {name: p.roles for name, p in plans.items()}, failed)
    for regression in regressions:
        for name in regression.names:
            plans[name].regression = regression
            plans[name].uses, plans[name].priors, plans[name].reason = [], [], ""
    for name, reason in reasons.items():
        plans[name].reason += f", and not by least squares: {reason}"


def _find_use(factor: Factor, form: ClosedForm, argument: Argument, tensor: Tensor, parameter: Parameter) -> Use | str:
    """The first view of an argument in which the parameter is a selection, or why there is none."""
    reason = "it does not depend on the parameter"
    unwrapped_batch = innermost(factor.fn).batch_shape
    for view in argument.views:
        with torch.enable_grad():
            seen = view.read(innermost(factor.fn), tensor, argument.event_dim)
            blocks = find_blocks(seen, parameter.value, argument.event_dim, view.normalised, view.matrix)
        if isinstance(blocks, Blocks) and blocks.factor is not None and not (argument.rescale and view.scales):
            reason = "it is a multiple of the parameter"
            continue
        if isinstance(blocks, Blocks):
            batch, inner = blocks.batch, len(unwrapped_batch) - len(factor.fn.batch_shape)
            plates = [f.dim - inner for f in factor.site["cond_indep_stack"] if f.vectorized]
            varies = any(dim >= -len(batch) and batch[dim] > 1 for dim in plates)
            return Use(factor.name, form, argument, view, blocks, varies)
        if blocks is not None:
            reason = blocks
    return reason


def _certain(form: ClosedForm, tensors: list[Tensor]) -> list[int]:
    """Arguments that can only be one: probabilities of a single state."""
    normalised = [all(view.normalised for view in argument.views) for argument in form.arguments]
    return [i for i, tensor in enumerate(tensors) if normalised[i] and tensor.shape[-1:] == (1,)]


def _selects(factor: Factor, form: ClosedForm, i: int, tensors: list[Tensor], parameter: Parameter) -> bool:
    return isinstance(_find_use(factor, form, form.arguments[i], tensors[i], parameter), Use)


def _depends(tensor: Tensor, parameter: Parameter, parameters: Iterable[Parameter]) -> bool:
    """Whether a tensor moves with a parameter, here or where other parameters have other values."""
    if not tensor.requires_grad or not parameter.value.requires_grad:
        return False
    if tensor is parameter.value:
        return True
    with torch.enable_grad():
        largest = tensor.detach().abs().amax()
        largest = torch.where(largest > 0, largest, 1).clamp_min(torch.finfo(tensor.dtype).tiny)
        probe = (tensor / largest * fixed_noise(tensor)).sum()  # a plain sum does not see what is normalised
        (gradient,) = torch.autograd.grad(probe, parameter.value, retain_graph=True, allow_unused=True)
        if gradient is None or bool((gradient != 0).any()):
            return gradient is not None
        return _moves_elsewhere(probe, parameter.value, [p.value for p in parameters if p.value.requires_grad])


def _moves_elsewhere(probe: Tensor, value: Tensor, values: list[Tensor]) -> bool:
    """Whether a derivative that is zero is so by accident: what multiplies the parameter is zero just now.

    Of a product of several parameters, derivatives by some of them see that there are the others.
    """
    targets = [value]
    try:
        for _ in range(ORDERS):
            found = torch.autograd.grad(probe, targets, create_graph=True, allow_unused=True)
            known = [gradient for gradient in found if gradient is not None]
            if any(bool((gradient != 0).any()) for gradient in known):
                return True
            connected = [(g * fixed_noise(g)).sum() for g in known if g.requires_grad]
            if not connected:
                return False
            probe, targets = torch.stack(connected).sum(), values
    except RuntimeError:  # something of the program's own is differentiable only once
        pass
    return False


def _tensors_of(fn: object) -> list[Tensor]:
    """All tensors that a distribution was built from, through whatever it wraps."""
    found: list[Tensor] = []
    seen: set[int] = set()
    pending: list[object] = [fn]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
        elif isinstance(item, (torch.distributions.Distribution, torch.distributions.Transform, torch.nn.Module)):
            pending.extend(vars(item).values())
            if isinstance(item, torch.nn.Module):
                pending.extend(item.parameters())
    return [t for t in found if t.requires_grad]
