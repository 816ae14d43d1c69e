r"""The E-step of a mixture in one pass over its rows: score, normalise and gather statistics a block at a time.

Where a program has one enumerated site, in one plate, and everything else in that plate or outside of it depends on
no other discrete site, the posterior of a row needs that row only. Its features are made once, serve both matrix
products (scores before the softmax, statistics after it) while they are in the cache, and are forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_lvm.handlers.counted import same_scale
from pyro_lvm.infer.factors import Factor
from pyro_lvm.infer.m_step import ExponentialFamily, Reference, Statistics, closed_form
from pyro_lvm.infer.markov import Markov
from pyro_lvm.infer.natural import Kernel, dtype_of, rows_of_a_block
from pyro_lvm.infer.nonfinite import NonFiniteLoss
from pyro_lvm.ops.scratch import Scratch

__all__ = ["Memory", "RowPass"]

# A log-density below this stands for probability zero: natural parameters are kept finite.
IMPOSSIBLE = -1e25


@dataclass
class Memory:
    """What one E-step leaves to the next: where the values of each site lie, and their base measure.

    Attributes:
        fixed: Keep the first reference of a site, as averages of statistics over batches need.
        markov: What the program was recognised as, if it is a chain of equal steps; False if it is none.
        scratch: Where intermediate results go.
    """

    fixed: bool = False
    references: dict[str, tuple[Tensor, int, Reference | None]] = field(default_factory=dict)
    bases: dict[str, tuple[Tensor, int, Tensor | None]] = field(default_factory=dict)
    seen: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    markov: Markov | bool | None = None
    scratch: Scratch = field(default_factory=Scratch)

    def is_new(self, site: str, value: Tensor) -> bool:
        """Whether these values were not seen at this site before; they are now."""
        known = self.seen.get(site)
        if known is not None and known[0] is value and known[1] == value._version:
            return False
        self.seen[site] = (value, value._version)
        return True

    def reference(self, site: str, value: Tensor) -> Reference | None:
        """The reference of a site if it was found on this very tensor."""
        known = self.references.get(site)
        if known is not None and (self.fixed or (known[0] is value and known[1] == value._version)):
            return known[2]
        return None

    def remember(self, site: str, value: Tensor, reference: Reference | None) -> None:
        """Keep what was found."""
        if self.reference(site, value) is None:
            self.references[site] = (value, value._version, reference)

    def state_dict(self) -> dict[str, Any]:
        """The references, as far as they are kept over batches."""
        known = {site: found[2] for site, found in self.references.items() if found[2] is not None}
        return {site: dict(vars(found)) for site, found in known.items()} if self.fixed else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        for site, saved in state.items():
            self.references[site] = (saved["centre"], 0, Reference(**saved))

    def log_base(self, site: str, value: Tensor, kernel: Kernel) -> Tensor | None:
        """The base measure of every row."""
        known = self.bases.get(site)
        same = known is not None and known[0] is value and known[1] == value._version
        if known is not None and same and kernel.mask is None and kernel.family.base_of_value:
            return known[2]
        base = kernel.log_base(0, kernel.cells.num_rows)
        base = base if base is None else base.double()
        self.bases[site] = (value, value._version, base)
        return base


@dataclass
class RowPass:
    """A mixture's factors, arranged for one pass.

    Attributes:
        latent: The enumerated site.
        state_dim: The batch dimension of its states.
        row_dim: The batch dimension of the rows.
        states: Number of states K.
        rows: Number of rows n.
        kernels: Sites in natural form.
        dense: Log-densities of the other sites in the plate, broadcastable to (K, n).
        constant: Log-densities of every state that are the same in all rows, (K, 1).
        scale: The common scale of the plate's sites: a number, or a tensor (n,).
        outside: Sites outside the plate.
        prior: Sufficient statistics of the latent site's states, (trailing, K) each; empty if its parameters vary.
    """

    latent: Factor
    state_dim: int
    row_dim: int
    states: int
    rows: int
    kernels: dict[str, Kernel]
    dense: list[Tensor]
    constant: Tensor
    scale: Any
    outside: list[Factor]
    prior: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, factors: Mapping[str, Factor], memory: Memory) -> RowPass | None:
        """Recognise a mixture; None for any other program."""
        latent = [factor for factor in factors.values() if factor.enumerated]
        if len(latent) != 1 or latent[0].site["mask"] is not None:
            return None
        (z,) = latent
        frames = [f for f in z.site["cond_indep_stack"] if f.vectorized]
        if len(frames) != 1:
            return None
        (frame,) = frames
        state_dim, row_dim, rows = z.site["infer"]["_enumerate_dim"], frame.dim, frame.size
        states = z.value.shape[state_dim - z.fn.event_dim] if z.value.dim() >= -state_dim + z.fn.event_dim else 1
        inside: list[Factor] = []
        outside: list[Factor] = []
        for factor in factors.values():
            names = {f.name for f in factor.site["cond_indep_stack"] if f.vectorized}
            if not names <= {frame.name}:
                return None
            wide = _wide_dims(factor)
            if factor is not z:
                (inside if names else outside).append(factor)
            if not wide <= ({state_dim, row_dim} if names else set()):
                return None
        scale = z.site["scale"]
        if any(not same_scale(f.site["scale"], scale) for f in inside):
            return None
        if isinstance(scale, Tensor) and scale.numel() == 1:
            scale = float(scale)
        if isinstance(scale, Tensor):
            if scale.dim() < -row_dim or scale.shape[row_dim] != scale.numel():
                return None
            scale = scale.reshape(-1)
        found = cls(z, state_dim, row_dim, states, rows, {}, [], torch.zeros(states, 1), scale, outside)
        for factor in inside:
            found._add(factor, memory)
        found._add_latent()
        return found

    def _add(self, factor: Factor, memory: Memory) -> None:
        site, value = factor.site, factor.value
        reference = memory.reference(factor.name, value)
        kernel = None
        if not site["args"] and not site["kwargs"]:
            kernel = Kernel.of(factor.fn, value, site["mask"], reference, exact=False, correction=factor.correction)
        if kernel is not None and kernel.accurate and self._fits(kernel):
            memory.remember(factor.name, value, kernel.reference)
            self.kernels[factor.name] = kernel
            base = memory.log_base(factor.name, value, kernel)
            if base is not None:
                self.dense.append(base.unsqueeze(0))
            return
        density = factor.log_density
        if site["mask"] is not None:
            density = torch.where(torch.as_tensor(site["mask"]), density, 0.0)
        self.dense.append(self._as_table(density))

    def _add_latent(self) -> None:
        """The latent site's own density: K numbers, unless its parameters vary from row to row."""
        z, family = self.latent, closed_form(self.latent.fn)
        if isinstance(family, ExponentialFamily):
            etas, log_normalizer = family.natural(z.fn, None)
            if log_normalizer.numel() == 1:
                statistics = family.sufficient(self.support(), z.fn, None)
                self.prior = tuple(t.reshape(-1, self.states).double() for t in statistics)
                density = -log_normalizer.reshape(1).double()
                base = family.base(self.support().movedim(-1, 0), z.fn)
                density = density if base is None else density + base.double()
                if z.correction is not None:
                    density = density + z.correction.reshape(1)
                for eta, statistic in zip(etas, self.prior, strict=True):
                    density = density + eta.double().clamp_min(10 * IMPOSSIBLE).reshape(-1) @ statistic
                self.constant = density.reshape(-1, 1)
                return
        self.dense.append(self._as_table(z.log_density))

    def support(self) -> Tensor:
        """The states, (*event, K)."""
        z = self.latent
        return z.value.reshape(self.states, *z.fn.event_shape).movedim(0, -1)

    def _fits(self, kernel: Kernel) -> bool:
        """Whether the kernel's cells are the states and its rows the rows."""
        shape = kernel.cells.cell_shape
        states = [d - len(shape) for d, size in enumerate(shape) if size > 1]
        return states in ([], [self.state_dim]) and kernel.cells.num_rows == self.rows

    def _as_table(self, density: Tensor) -> Tensor:
        """A log-density as (K or 1, n or 1)."""
        depth = max(-self.state_dim, -self.row_dim, density.dim())
        density = density.reshape((1,) * (depth - density.dim()) + tuple(density.shape))
        table = density.movedim((self.state_dim, self.row_dim), (0, 1)) if depth > 1 else density.unsqueeze(0)
        return table.reshape(table.shape[0], table.shape[1]).detach()

    def run(self, temperature: float, keep: bool, variance_floor: float, scratch: Scratch) -> RowResult:
        """The pass itself, in the memory given."""
        kernels = list(self.kernels.values())
        device = self.latent.value.device
        single = kernels and all(k.dtype == torch.float32 for k in kernels)
        dtype = torch.float32 if single else torch.float64
        constant = sum((k.constant.unsqueeze(-1) for k in kernels), self.constant.to(device, torch.float64))
        constant = constant.expand(self.states, 1).to(dtype)
        coefficients = torch.cat(
            [k.coefficients.expand(self.states, -1) for k in kernels] or [torch.zeros(self.states, 0)], 1
        ).to(device, dtype)
        width = coefficients.shape[1]
        dense = [table.to(dtype) for table in self.dense]
        scale = self.scale.to(dtype) if isinstance(self.scale, Tensor) else self.scale
        block = min(self.rows, rows_of_a_block(width))
        total = torch.zeros(self.states, dtype=torch.float64, device=device)
        sums = torch.zeros(self.states, width, dtype=torch.float64, device=device)
        log_likelihood = torch.zeros((), dtype=torch.float64, device=device)
        lowest = torch.full((), torch.inf, dtype=dtype, device=device)
        weights = torch.empty(self.states, self.rows, dtype=self._given_dtype(), device=device) if keep else None
        for start in range(0, self.rows, block):
            stop = min(self.rows, start + block)
            features = scratch.take("features", (width, stop - start), coefficients)
            position = 0
            for kernel in kernels:
                kernel.write(start, stop, features[position : position + kernel.num_features])
                position += kernel.num_features
            joint = scratch.take("joint", (self.states, stop - start), coefficients)
            torch.addmm(constant, coefficients, features, out=joint)
            for table in dense:
                joint += table if table.shape[1] == 1 else table[:, start:stop]
            largest = joint.amax(0)
            lowest = torch.minimum(lowest, largest.min())
            if temperature == 1.0:
                evidence = joint.sub_(largest).exp_().sum(0)
                joint.div_(evidence)
            else:
                evidence = (joint - largest).exp().sum(0)
                joint = (joint * temperature).softmax(0)
            rows = evidence.log_().add_(largest)
            if isinstance(scale, Tensor):
                part = scale[start:stop]
                rows, joint = rows * part, joint.mul_(part)
            elif scale != 1.0:
                rows, joint = rows * scale, joint.mul_(scale)
            log_likelihood += rows.sum(dtype=torch.float64)
            total += joint.sum(1, dtype=torch.float64)
            sums += joint @ features.T
            if weights is not None:
                weights[:, start:stop] = joint
        if float(lowest) < IMPOSSIBLE:
            raise NonFiniteLoss(self._impossible())
        for factor in self.outside:
            log_likelihood += _scaled(factor)
        return RowResult(float(log_likelihood), self._collect(total, sums, variance_floor), total, weights)

    def _impossible(self) -> str:
        """Name the row that has probability zero, and the site that makes it so if there is one."""
        single = {name: kernel.table() for name, kernel in self.kernels.items()}
        for name, table in single.items():
            empty = (table.amax(0) < IMPOSSIBLE).nonzero()
            if len(empty):
                return f"Exact enumeration: row {int(empty[0])} has probability zero at site '{name}' {self._advice()}"
        total = sum((t.expand(self.states, self.rows) for t in [*self.dense, *single.values()]), self.constant)
        row = int(torch.as_tensor(total).expand(self.states, self.rows).amax(0).argmin())
        return f"Exact enumeration: row {row} has probability zero {self._advice()}"

    def _advice(self) -> str:
        return (
            f"in every state of '{self.latent.name}'. Check the support of the observed sites, or start from other "
            "parameters."
        )

    def _given_dtype(self) -> torch.dtype:
        """The type of the program's own log-densities."""
        kinds = {dtype_of(k.base, k.cells.rows) for k in self.kernels.values()} or {t.dtype for t in self.dense}
        return torch.float32 if kinds == {torch.float32} else torch.float64

    def _collect(self, total: Tensor, sums: Tensor, variance_floor: float) -> dict[str, Statistics]:
        gathered, position = {}, 0
        for name, kernel in self.kernels.items():
            part = sums[:, position : position + kernel.num_features]
            position += kernel.num_features
            count = total
            if len(kernel.constant) == 1:
                part, count = part.sum(0, keepdim=True), total.sum(0, keepdim=True)
            gathered[name] = kernel.collect(count, part, variance_floor)
        if self.prior:
            z, family = self.latent, closed_form(self.latent.fn)
            cells = torch.Size([1] * max(-self.state_dim, -self.row_dim))
            parts = [
                (statistic @ total).reshape(*cells, *shape)
                for statistic, shape in zip(self.prior, family.trailing(z.fn), strict=True)  # type: ignore[union-attr]
            ]
            gathered[z.name] = family.collect(z.fn, None, total.sum().reshape(cells), tuple(parts), variance_floor)  # type: ignore[union-attr]
        return gathered

    def spread(self, weights: Tensor) -> Tensor:
        """Weights (K, n) in the batch layout of the latent site."""
        depth = max(-self.state_dim, -self.row_dim)
        shape = [1] * depth
        shape[depth + self.state_dim], shape[depth + self.row_dim] = self.states, self.rows
        ordered = weights if self.state_dim < self.row_dim else weights.T
        return ordered.reshape(shape)


@dataclass
class RowResult:
    """What a pass found: log p(x), statistics by site, rows per state (K,), and weights (K, n) if they were kept."""

    log_likelihood: float
    gathered: dict[str, Statistics]
    total: Tensor
    weights: Tensor | None


def _wide_dims(factor: Factor) -> set[int]:
    """Batch dimensions along which a site has more than one entry."""
    shapes = [factor.fn.batch_shape, factor.value.shape[: factor.value.dim() - factor.fn.event_dim]]
    mask = factor.site["mask"]
    if isinstance(mask, Tensor):
        shapes.append(mask.shape)
    return {d - len(shape) for shape in shapes for d, size in enumerate(shape) if size > 1}


def _scaled(factor: Factor) -> Tensor:
    density = torch.as_tensor(factor.log_density.detach())
    if factor.site["mask"] is not None:
        density = torch.where(torch.as_tensor(factor.site["mask"]), density, 0.0)
    return (density * factor.site["scale"]).sum(dtype=torch.float64)
