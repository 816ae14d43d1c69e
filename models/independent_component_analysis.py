r"""Independent component analysis: rows are a linear map of independent sources that are not normal.

.. math::

    h_{nk} \sim p, \qquad x_n = b + W h_n
    \qquad\text{or, with noise,}\qquad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, \mathrm{diag}(\sigma^2))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from jaxtyping import Float, Num
from torch import Tensor
from torch.distributions import constraints

from pyro_lvm.distributions.independent_components import IndependentComponents
from pyro_lvm.distributions.sources import PEAKED, SOURCES, Source, SourceDensity, check_source, is_learned, source_law
from pyro_lvm.handlers.counted import counted
from pyro_lvm.models.linear_factors import LinearFactors
from pyro_lvm.ops.flatness import flatness
from pyro_lvm.ops.independent_components import Climbed, climb
from pyro_lvm.ops.linear_gaussian import principal_parts
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whitening import dependent_columns, random_rotation, whitening
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["IndependentComponentAnalysis"]

START = 10.0  # degrees of freedom: tails far from both the normal's and Cauchy's
# A source with fewer could pile up on rows that are equal in one direction, more are a normal's.
LEAST, MOST = 1.0, 200.0
FEW, FEWEST, CHOICES = 2000, 10, 5  # rows, of each column at least, and climbs, by which a start chooses densities
CLEARLY = 3.0  # standard errors by which a source is flatter than the normal law
NOISE = 0.1  # least share of a column's variance that is noise at the start


class IndependentComponentAnalysis(LinearFactors):
    r"""Rows that mix independent sources: since these are not normal, the rows tell how, but for order and scale.

    ================  ==========================================  =========  ======================
    symbol            meaning                                     shape      code
    ================  ==========================================  =========  ======================
    :math:`W`         mixing matrix                               (d, k)     `weight`
    :math:`b`         location                                    (d,)       `loc`
    :math:`\nu`       degrees of freedom of Student's t           (k,)       `degrees_of_freedom`
    :math:`\sigma`    standard deviations of the noise            (d,)       `noise_scale`
    :math:`h`         sources                                     (n, k)     `fit.transform(x)`
    ================  ==========================================  =========  ======================

    Without noise the map is square, rows determine their sources, and the likelihood is exact by change of variables;
    "em" then is maximum likelihood, by quasi-Newton steps that do not depend on units. It is that of the density
    given: sources of another density are told apart as long as both are more peaked than the normal, or both less.
    "sub-gaussian", two normals side by side, is less peaked, as sines, square waves and uniform noise are. "adaptive"
    takes that or "sech" for every source, whichever its rows ask for ("svi" stays with the start's choice). The others
    that have a name are more peaked; a warning tells of two sources or more that clearly are not.
    Columns of W come by falling norm, their largest entry positive (of named sources, which are symmetric). Rows must
    be complete.

    With noise there may be more or fewer sources than columns, h is a site, and missing entries are NaN and are left
    out. The likelihood has no closed form: "svi" takes a guide, by default "local".

    Scales of sources are in W. Named sources have variance one, so that W W' is the covariance they explain, but for
    Student's t, which has scale one. A law of your own is taken as it is; parameters inside of a function's law are
    learned by gradient.

    Args:
        source: "laplace", "logistic", "student-t", "sech" (hyperbolic secant), "sub-gaussian" or "adaptive"; or a
            univariate distribution over the real numbers; or a function that makes one.
        num_components: k >= 1; by default the number of columns, which is all it can be without noise.
        noise: Whether rows have normal noise.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        degrees_of_freedom: Of "student-t", > 0; None to learn one for each source, between 1 and 200.

    Raises:
        ValueError: An argument is out of range.

    References:
        P. Comon (1994), Independent component analysis, a new concept?, Signal Processing 36(3).
        D. MacKay (1996), Maximum likelihood and covariant algorithms for independent component analysis.
        T.-W. Lee, M. Girolami, T. Sejnowski (1999), Independent component analysis using an extended infomax algorithm
            for mixed subgaussian and supergaussian sources, Neural Computation 11.
        P. Ablin, J.-F. Cardoso, A. Gramfort (2018), Faster independent component analysis by preconditioning with
            Hessian approximations, IEEE Transactions on Signal Processing 66(15).

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> fit = lvm.fit(lvm.models.IndependentComponentAnalysis("sech"), x, seed=0, progress=False)
        >>> fit.transform(x).shape
        torch.Size([150, 4])
    """

    handles_missing: ClassVar[bool] = False
    dims: ClassVar[dict[str, list[str]]] = {
        "weight": ["column", "component"],
        "loc": ["column"],
        "noise_scale": ["column"],
        "degrees_of_freedom": ["component"],
    }

    def __init__(
        self,
        source: Source = "laplace",
        num_components: int | None = None,
        noise: bool = False,
        data_dim: int | None = None,
        degrees_of_freedom: float | int | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(noise, bool):
            raise ValueError(f"{name}: expected noise to be True or False; got {noise!r}.")
        check_source(name, source)
        if source == "adaptive" and noise:
            raise ValueError(
                f"{name}: expected source='adaptive' without noise, since rows then tell their sources; got "
                "noise=True. Pass a source by name."
            )
        if degrees_of_freedom is not None:
            degrees_of_freedom = real_number(name, "degrees_of_freedom", degrees_of_freedom)
            if source != "student-t":
                raise ValueError(
                    f"{name}: expected degrees_of_freedom for source='student-t' only; got {degrees_of_freedom:g} for "
                    f"{source!r}. Leave it out."
                )
        count = None if num_components is None else whole_number(name, "num_components", num_components)
        super().__init__(count or 1)
        self.source, self.num_components, self.noise = source, count, noise
        self.fixed_degrees_of_freedom = degrees_of_freedom
        self.__dict__["handles_missing"] = noise  # a fact of this model, not of the class
        if data_dim is not None:
            d = whole_number(name, "data_dim", data_dim)
            self._check_count(d)
            self._declare_parts(torch.zeros(d), torch.eye(d, count or d), torch.ones(d))

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "source": self.source,
            "num_components": self.num_components,
            "noise": self.noise,
            "data_dim": self.data_dim,
            "degrees_of_freedom": self.fixed_degrees_of_freedom,
        }

    def forward(
        self,
        x: Float[Tensor, "n d"] | None = None,
        *,
        size: int | None = None,
        sample_weights: Num[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Run the program.

        Args:
            x: Observed rows, shape (n, d), NaN where missing if there is noise; None to generate.
            size: Number of rows to generate.
            sample_weights: How often each row counts, shape (n,), >= 0; once by default.

        Returns:
            Rows, shape (n, d).

        Raises:
            ValueError: There are neither rows nor a size.
        """
        if self.noise or (x is None and size is None):
            return super().forward(x, size=size, sample_weights=sample_weights)
        law = IndependentComponents(self._source_law(self.loc), self.weight, self.loc)
        m_step = "gradient" if is_learned(law.source) and self.source not in SOURCES else self._climb
        with pyro.plate("data", size if x is None else len(x)), counted(sample_weights, self.loc):
            return pyro.sample("x", law, obs=x, infer={"m_step": m_step})

    def initialize(self, x: Tensor, sample_weights: Tensor | None = None) -> None:
        """Start from the covariance of the rows, turned at random.

        Args:
            x: Rows, shape (n, d), NaN where missing if there is noise.
            sample_weights: How often each row counts, shape (n,); rows that do not count give no start.

        Raises:
            ValueError: Rows do not fit the model, or lie in fewer dimensions than there are columns, without noise; or
                bad weights.
        """
        if self.noise:
            super().initialize(x, sample_weights)
            return
        x, counts = self._counted(x, sample_weights)
        mean, root, values = whitening(x, counts)
        lost = dependent_columns(values, x.dtype)
        if lost:
            d = x.shape[1]
            raise ValueError(
                f"{self._name}: expected rows that spread in all directions of their {d} columns; got {len(x)} rows in "
                f"{d - lost}, whose likelihood is unbounded. Keep {d - lost} columns or principal components, add "
                "rows, or pass noise=True."
            )
        self._declare_parts(*(part.to(x) for part in (mean, root @ random_rotation(x.shape[1]).to(root), mean)))
        if self.source == "adaptive":  # climbs of few rows tell which sources are flat
            count = min(FEW, max(len(x) // 2, FEWEST * x.shape[1]))
            few = x[torch.randperm(len(x))[:count].to(x.device)]
            with torch.no_grad():
                for _ in range(CHOICES):
                    law = IndependentComponents(self._source_law(self.loc), self.weight, self.loc)
                    for name, value in self._climb(law, few, few.new_ones(len(few))).items():
                        setattr(self, name, value)

    def _check_count(self, columns: int) -> None:
        if not self.noise and self.num_components not in (None, columns):
            raise ValueError(
                f"{self._name}: expected as many components as columns ({columns}) without noise; got num_components="
                f"{self.num_components}. Pass noise=True, or leave it out."
            )

    def _declare(self, mean: Tensor, covariance: Tensor) -> None:
        """With noise: principal components turned at random, or a random frame of as many vectors as are asked for."""
        d, k = len(mean), self.num_components or len(mean)
        variance = covariance.diagonal()
        scale = variance.sqrt()
        weight, _ = principal_parts(covariance / scale / scale.unsqueeze(-1), min(d, k))
        weight = weight * scale.unsqueeze(-1) @ random_rotation(k)[: min(d, k)].to(mean)
        weight = weight * (1 - NOISE) ** 0.5
        self._declare_parts(mean, weight, (variance - weight.square().sum(-1)).maximum(NOISE * variance))

    def _declare_parts(self, mean: Tensor, weight: Tensor, noise: Tensor) -> None:
        """Create the parameters; `weight` is for sources of variance one."""
        self.data_dim, self.num_factors = weight.shape
        freedom = weight.new_full(weight.shape[1:], self.fixed_degrees_of_freedom or START)
        if self.source == "student-t" and self.fixed_degrees_of_freedom is None:
            self.declare("degrees_of_freedom", freedom, constraints.positive)
        elif self.source == "student-t":
            self.register_buffer("degrees_of_freedom", freedom)
        self.register_buffer("flat", torch.zeros_like(weight[0]))
        self.register_buffer("flatness", torch.zeros_like(weight[0]))
        weight = self._in_order(weight / self._source_spread(mean))[0]
        self.declare("weight", weight, constraints.real)
        self.declare("loc", mean, constraints.real)
        if self.noise:
            self.declare("noise_scale", noise.sqrt(), constraints.positive)

    def _source_law(self, like: Tensor) -> Any:
        """The law of a source, or of each of them."""
        freedom = self.degrees_of_freedom if self.source == "student-t" else None
        return source_law(self._name, self.source, like, freedom, self.flat)

    def _source_spread(self, like: Tensor) -> Tensor:
        """Standard deviations of the sources, 1 where there are none."""
        try:
            with torch.no_grad():
                spread = self._source_law(like).stddev
        except NotImplementedError:
            return torch.ones_like(like[:1])
        return torch.where(spread.isfinite() & (spread > 0), spread, 1.0)

    def _factor_law(self, rows: int, like: Tensor) -> Any:
        return self._source_law(like).expand([rows, self.num_factors]).to_event(1)

    def _climb(self, fn: Any, value: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The M-step: some steps uphill on the likelihood of the rows, whatever their units."""
        while not isinstance(fn, IndependentComponents):
            fn = fn.base_dist
        rows, weight, loc = (part.detach().double() for part in (value, fn.weight, fn.loc))
        y = torch.linalg.solve(weight.mT, rows - loc, left=False)
        counts = None if bool((weights == 1).all()) else weights.double().expand(len(rows))
        learned = self.source == "student-t" and self.fixed_degrees_of_freedom is None

        def climbed(flat: Tensor) -> tuple[Climbed, Tensor]:
            law = source_law(self._name, self.source, weight, getattr(fn.source, "df", None), flat)
            freedom = law.df if learned else None
            return climb(y, SourceDensity(law), weights=counts, freedom=freedom, limits=(LEAST, MOST)), flat

        flatter = flatness(y, counts)
        choices = [self.flat]
        if self.source == "adaptive" and not torch.equal(other := (flatter > 0).to(self.flat), self.flat):
            choices.append(other)
        found, flat = min(map(climbed, choices), key=lambda pair: pair[0].last_loss)
        weight = torch.linalg.solve(found.matrix, weight, left=False)
        loc = loc - weight @ found.shift
        weight, order = self._in_order(weight)
        self.flat.copy_(flat[order])
        self.flatness.copy_(flatter[order])
        updates = {"weight": weight, "loc": loc}
        if found.freedom is not None:
            updates["degrees_of_freedom"] = found.freedom[order]
        return {name: new.to(value) for name, new in updates.items()}

    def remarks(self, columns: Sequence[str] | None = None) -> list[str]:
        """Whether sources were clearly less peaked than their law, so that they stay mixed."""
        count = int((self.flatness > CLEARLY).sum())
        if self.source not in PEAKED or count < 2:
            return []
        return [
            f"{self._name}({self.source!r}): {count} of {self.num_factors} sources are flatter than the normal law, as "
            f"sines and square waves are; {self.source!r} is more peaked, and leaves such sources mixed. Pass "
            "source='adaptive'."
        ]

    def _in_order(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Columns by falling norm, their largest entries positive, as far as that does not change the law of rows."""
        order = torch.arange(weight.shape[1], device=weight.device)
        if isinstance(self.source, str):
            order = weight.square().sum(0).argsort(descending=True, stable=True)
            weight = weight[:, order]
            largest = weight.gather(0, weight.abs().argmax(0, keepdim=True))
            weight = weight * torch.where(largest < 0, -1.0, 1.0)
        return weight, order
