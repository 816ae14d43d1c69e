"""How EM will update each parameter: in closed form or by gradient, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pyro_lvm.infer.families  # noqa: F401 - registers the closed forms
from pyro_lvm.infer.blocks import Blocks, unify
from pyro_lvm.infer.expectation import Expectation
from pyro_lvm.infer.m_step import Argument, ClosedForm, Conjugate, View
from pyro_lvm.infer.regression import Regression

__all__ = ["ParameterPlan", "Plan", "PriorUse", "Use"]


@dataclass(frozen=True)
class Use:
    """One place where a parameter is selected: an argument of a site, seen through a view."""

    site: str
    form: ClosedForm
    argument: Argument
    view: View
    blocks: Blocks
    varies: bool

    def describe(self) -> str:
        """E.g. `x.scale as variance`."""
        same = self.view.name == self.argument.name
        return f"{self.site}.{self.argument.name}" + ("" if same else f" as {self.view.name}")


@dataclass(frozen=True)
class PriorUse:
    """A site whose value is the parameter: its prior."""

    site: str
    blocks: Blocks
    kind: str
    conjugate: Conjugate | None = None


@dataclass
class ParameterPlan:
    """The M-step of one parameter.

    Attributes:
        uses: The selections that give its closed form; empty for a gradient step.
        priors: The sites that it is the value of.
        sites: All sites whose density depends on it.
        roles: Those sites, each with the argument in which it is seen ("value" for a prior's value).
        regression: The least squares that give its closed form in place of selections.
        reason: Why there is no closed form; empty if there is one.
        own: The site whose `infer={"m_step": ...}` updates it; empty if none does.
        on_boundary: Whether a prior was found to put the mode on the boundary of the support.
    """

    name: str
    shape: tuple[int, ...]
    uses: list[Use] = field(default_factory=list)
    priors: list[PriorUse] = field(default_factory=list)
    sites: tuple[str, ...] = ()
    roles: list[tuple[str, str]] = field(default_factory=list)
    regression: Regression | None = None
    reason: str = ""
    on_boundary: bool = False
    own: str = ""

    def unify(self) -> None:
        """Number the parameter's blocks alike in all its uses; without that there is no closed form."""
        if self.reason or not self.uses:
            return
        # families may share an argument, as a complete normal and one with gaps do; their statistics must add up
        kinds = {(id(use.argument if use.form.additive else use.form), use.view.name) for use in self.uses}
        if len(kinds) > 1:
            shared = ", ".join(sorted({use.describe() for use in self.uses}))
            self.reason = f"it is shared by arguments of different kinds: {shared}"
            return
        use = self.uses[0]
        for prior in self.priors:
            if prior.conjugate is None:
                self.reason = f"its prior ({prior.kind}) is not conjugate to {use.describe()}"
                return
        blocks = unify([*(use.blocks for use in self.uses), *(prior.blocks for prior in self.priors)])
        if blocks is None:
            self.reason = "its uses cut it into different blocks"
            return
        count = len(self.uses)
        self.uses = [replace(use, blocks=b) for use, b in zip(self.uses, blocks[:count], strict=True)]
        self.priors = [replace(prior, blocks=b) for prior, b in zip(self.priors, blocks[count:], strict=True)]

    @property
    def closed(self) -> bool:
        """Whether the M-step is in closed form."""
        return bool(self.uses or self.regression) and not self.reason and not self.own


@dataclass
class Plan:
    """One line per parameter; `print(em.plan(x))`.

    Attributes:
        strategy: How the E-step is done.
        parameters: The M-step of each parameter.
        sites: All sample sites of the program.
        outside: Those that are priors of parameters.
    """

    strategy: str
    parameters: dict[str, ParameterPlan]
    sites: frozenset[str]
    outside: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[ParameterPlan]:
        return iter(self.parameters.values())

    @property
    def closed(self) -> list[ParameterPlan]:
        """Parameters with a closed-form M-step, locations before the scales around them."""
        plans = [p for p in self if p.closed]
        return sorted(plans, key=lambda p: p.uses[0].form.arguments.index(p.uses[0].argument) if p.uses else -1)

    @property
    def regressions(self) -> list[Regression]:
        """The least squares to solve."""
        found = {id(p.regression): p.regression for p in self if p.closed}
        return [regression for regression in found.values() if regression is not None]

    @property
    def gradient(self) -> list[ParameterPlan]:
        """Parameters that a gradient step must update."""
        return [p for p in self if not p.closed and p.sites and not p.own]

    @property
    def own(self) -> list[str]:
        """Sites that bring an M-step of their own."""
        return list(dict.fromkeys(p.own for p in self if p.own))

    def wants_weights(self, expectation: Expectation) -> bool:
        """Whether the M-step needs posterior weights themselves, not only the statistics that the E-step gathered."""
        known = {*expectation.gathered, *self.outside}
        known.update(part.name for chain in expectation.chains for part in chain.parts.values())
        return bool(self.gradient or self.own or self.regressions) or any(
            use.site not in known for entry in self.closed for use in entry.uses
        )

    def demote(self, name: str, reason: str) -> None:
        """Hand a parameter over to the gradient step, and all that are maximised with it."""
        regression = self.parameters[name].regression
        for other in (name,) if regression is None else regression.names:
            self.parameters[other].reason = reason

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        header = ("parameter", "shape", "M-step", "because")
        rows = [header]
        for p in self:
            if p.closed and p.regression:
                rows.append((p.name, str(p.shape), "closed form", f"it is {p.regression.describe()}"))
            elif p.closed:
                uses = list(dict.fromkeys(use.describe() for use in p.uses))
                shown = ", ".join(uses[:3]) + (f" and {len(uses) - 3} more" if len(uses) > 3 else "")
                shown += "".join(f", with prior {prior.kind}" for prior in p.priors)
                rows.append((p.name, str(p.shape), "closed form", f"it is {shown}"))
            elif p.own:
                rows.append((p.name, str(p.shape), "your own", f"site '{p.own}' brings its M-step"))
            elif p.sites:
                rows.append((p.name, str(p.shape), "gradient", p.reason))
            else:
                rows.append((p.name, str(p.shape), "none", "no site depends on it"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        return "\n".join([f"E-step: {self.strategy}", *lines])
