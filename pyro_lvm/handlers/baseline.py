r"""Baselines for the score-function gradients of a guide's discrete sites.

`TraceGraph_ELBO` estimates the gradient of a site :math:`z` that has no reparameterised draws by
:math:`(J - b)\, \nabla \log q(z)`, with :math:`J` the cost downstream of :math:`z`, and reads :math:`b` from the site's
annotation `infer={"baseline": {"baseline_value": b}}`. It also adds :math:`(J - b)^2` to its loss, which trains the
parameters of :math:`b`; its derivative :math:`-2 (J - b)` is how a baseline without parameters learns the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_lvm import _pyro
from pyro_lvm.nn.baselines import Average, Baseline, Constant, Network, SelfCritic
from pyro_lvm.ops.real_number import real_number

__all__ = ["baseline"]

KINDS = ("moving-average", "constant", "network", "self-critic", "optimal")


def baseline(
    guide: Callable,
    kind: str = "moving-average",
    *,
    network: nn.Module | None = None,
    model: Callable | None = None,
    sites: Sequence[str] | None = None,
    decay: float = 0.9,
) -> nn.Module:
    r"""A guide that gives a baseline to every site without reparameterised draws, for `pyro.infer.TraceGraph_ELBO`.

    Kinds: "moving-average" of past batches' costs; "constant", a trained number; "network", a function of the row
    trained by squared error, above a moving average; "self-critic", the likelihood of the row at the guide's most
    probable draw, above a moving average; "optimal", the number of least variance :math:`E[J s^2] / E[s^2]` with
    :math:`s` the score of a row's draw, estimated from past batches. All are estimated in nats of one row, without the
    scale and without the masked rows of the site, and depend on no draw that they are used for.

    Signals are not divided by their standard deviation, as `NVIL` does it: a site's annotation is taken off a cost that
    is known only after the run, and cannot multiply it.

    The state is in parameters and buffers of the guide that is returned: fits and checkpoints hold it.

    Args:
        guide: Any Pyro program that draws at least one site without reparameterised draws.
        kind: One of the kinds above.
        network: For "network": maps rows, shape (n, d), to shape (n, 1) or (n,); each site gets a copy. By default a
            layer of 100 tanh units. Rows are the first tensor among the arguments, flattened and centred.
        model: For "self-critic": the model that is trained.
        sites: Names of the sites; by default all that have no reparameterised draws.
        decay: What remains of a batch's weight in an average after the next one, in [0, 1).

    Returns:
        A guide with the same draws. Without gradients it runs `guide` and does nothing else.

    Raises:
        ValueError: An option is out of range or missing; or, when the guide runs, a site is reparameterised or absent.

    References:
        R. Williams (1992), Simple statistical gradient-following algorithms, Machine Learning 8.
        A. Mnih, K. Gregor (2014), Neural variational inference and learning in belief networks, ICML, section 2.3.
        E. Greensmith, P. Bartlett, J. Baxter (2004), Variance reduction techniques for gradient estimates, JMLR 5.

    Example:
        >>> import torch, pyro, pyro_lvm as lvm
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", pyro.distributions.Bernoulli(logits=pyro.param("logit", torch.zeros(()))))
        >>> guided = lvm.handlers.baseline(guide, "moving-average")
        >>> guided(torch.zeros(3))
    """
    if kind not in KINDS:
        raise ValueError(f"baseline: expected kind to be one of {', '.join(KINDS)}; got {kind!r}.")
    decay = real_number("baseline", "decay", decay, "in [0, 1)")
    if not callable(guide) or isinstance(guide, type):
        what = f"the class {guide.__name__}" if isinstance(guide, type) else repr(guide)
        raise TypeError(
            f"baseline: expected guide to be a Pyro program, made already; got {what}. "
            "Pass one, as lvm.guides.RecognitionNet(model)."
        )
    if network is not None and kind != "network":
        raise ValueError(f"baseline: expected a network only for kind='network'; got one for {kind!r}. Leave it out.")
    if (kind == "self-critic") != (model is not None):
        raise ValueError(
            f"baseline: expected a model for kind='self-critic' and for no other; got kind={kind!r}, model={model!r}."
        )
    chosen = None if sites is None else ((sites,) if isinstance(sites, str) else tuple(sites))
    return _Guide(guide, kind, network, model, chosen, decay)


class _Parts(PyroModule):
    """The baselines by site; reading them in a call tells inference of their parameters."""

    def __init__(self) -> None:
        super().__init__("baseline")
        self.parts = nn.ModuleDict()

    def forward(self) -> nn.ModuleDict:
        """All of them."""
        return self.parts


class _Guide(nn.Module):
    """A guide whose sites carry baselines; `parts` holds a `Baseline` for each.

    No `PyroModule`: that would take over the parameters which a guide that is a plain function puts into the store.
    """

    def __init__(
        self,
        guide: Callable,
        kind: str,
        network: nn.Module | None,
        model: Callable | None,
        sites: tuple[str, ...] | None,
        decay: float,
    ) -> None:
        super().__init__()
        self.guide = guide
        self.kind = kind
        self.sites = sites
        self.decay = decay
        self.baselines = _Parts()
        # in tuples, lest they become parts of this module
        self._network = (network,)
        self._model = (model,)

    @property
    def parts(self) -> nn.ModuleDict:
        """The baselines by site."""
        return self.baselines.parts

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide and annotate its sites."""
        with _Sites() as met:
            result = self.guide(*args, **kwargs)
        sites = self._choose(met)
        rows = _rows(args, kwargs) if self.kind == "network" else None
        for site in sites:
            if _key(site) not in self.parts:
                self.parts[_key(site)] = self._make(rows).to(detach_provenance(site["fn"].log_prob(site["value"])))
        if not torch.is_grad_enabled():
            return result
        parts = self.baselines()
        critic = self._critic(met, args, kwargs) if self.kind == "self-critic" else []
        for site in sites:
            part = parts[_key(site)]
            if rows is not None:
                value = _place(site, met, rows, part)
            else:
                value = part(_sum_to(site, critic) if critic else None)
            site["infer"]["baseline"] = {"baseline_value": _annotation(site, part, value, met.parameters)}
        return result

    def _choose(self, met: _Sites) -> list[Any]:
        """The sites that get a baseline."""
        latent = {site["name"]: site for site in met.sites}
        unfit = {name: site for name, site in latent.items() if not getattr(site["fn"], "has_rsample", False)}
        for name in self.sites or ():
            if name not in unfit:
                what = f"one with reparameterised draws ({_family(latent[name])})" if name in latent else "no such site"
                raise ValueError(
                    f"baseline: expected '{name}' to be a site of the guide without reparameterised draws; got {what}. "
                    f"Leave it out, or choose among: {', '.join(unfit) or 'none'}."
                )
        if not unfit:
            raise ValueError(
                "baseline: expected a guide that draws a site without reparameterised draws; all of its sites "
                f"({', '.join(latent)}) have them. Use the guide without baseline."
            )
        return [site for name, site in unfit.items() if self.sites is None or name in self.sites]

    def _make(self, rows: Tensor | None) -> Baseline:
        """A baseline for one site."""
        if self.kind == "constant":
            return Constant()
        if self.kind == "self-critic":
            return SelfCritic(self.decay)
        if rows is not None:
            return Network(rows.shape[1], self.decay, self._network[0])
        return Average(self.decay, by_score=self.kind == "optimal")

    def _critic(self, met: _Sites, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """The observed sites of the model at the guide's most probable draw, with the subsamples of this run."""
        with torch.no_grad(), poutine.block(hide_types=["sample", "observe"]):
            with _MostProbable(met.subsamples):
                guided = poutine.trace(self.guide).get_trace(*args, **kwargs)
            # values of a vectorised run would not fit, so that the draw is made anew, one for each row
            replayed = poutine.trace(poutine.replay(self._model[0], trace=guided)).get_trace(*args, **kwargs)
            replayed.compute_log_prob(lambda name, site: site["is_observed"])
        return [replayed.nodes[name] for name in replayed.observation_nodes if "log_prob" in replayed.nodes[name]]


class _Sites(Messenger):
    """Notes what a guide draws, and lets every site have annotations of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[Any] = []
        self.subsamples: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = dict(msg["infer"])

    def _pyro_post_sample(self, msg: Any) -> None:
        if _pyro.site_is_subsample(msg):
            self.subsamples[msg["name"]] = msg["value"]
        elif not msg["is_observed"]:
            self.sites.append(msg)

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            self.parameters[msg["name"]] = leaf


class _MostProbable(Messenger):
    """Draws the mode of every site without reparameterised draws, and the subsamples of an earlier run."""

    def __init__(self, subsamples: dict[str, Tensor]) -> None:
        super().__init__()
        self.subsamples = subsamples

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            return
        if msg["name"] in self.subsamples:
            msg["value"], msg["done"] = self.subsamples[msg["name"]], True
        elif not getattr(msg["fn"], "has_rsample", False):
            try:
                # a tie of two modes is told as NaN
                msg["value"], msg["done"] = msg["fn"].mode.nan_to_num(), True
            except (NotImplementedError, AttributeError) as error:
                raise ValueError(
                    f"baseline: expected a site with a known mode for kind='self-critic'; '{msg['name']}' "
                    f"({_family(msg)}) has none. Use kind='network'."
                ) from error


def _annotation(site: Any, part: Baseline, value: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """The baseline in the shape of a site's cost, which teaches `part` as the gradient comes back."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    sizes = {-frame.dim: frame.size for frame in frames}
    shape = torch.Size(sizes.get(dim, 1) for dim in range(max(sizes, default=0), 0, -1))
    while shape and shape[0] == 1:  # as costs have theirs
        shape = shape[1:]
    value = _squeeze(value)
    scale = _squeeze(torch.as_tensor(site["scale"]).to(value)).expand(shape)
    mask = torch.as_tensor(True if site["mask"] is None else site["mask"], device=scale.device)
    counts = _squeeze(mask).expand(shape) & (scale > 0)
    weights = _squared_scores(site, shape, parameters) if part.needs_scores else torch.ones_like(scale)
    result = torch.where(counts, value.expand(shape) * scale, torch.zeros_like(scale))
    if not result.requires_grad:
        result.requires_grad_()

    def learn(gradient: Tensor) -> None:
        error = (detach_provenance(gradient) / (-2 * scale))[counts]
        if error.numel() and bool(error.isfinite().all()):
            with torch.no_grad():
                part.learn(error, weights[counts])

    result.register_hook(learn)
    return result


def _squared_scores(site: Any, shape: torch.Size, parameters: dict[str, Tensor]) -> Tensor:
    r"""Unbiased estimates of :math:`|\nabla \log q|^2` of every draw, in all parameters of the guide.

    With signs :math:`\epsilon` drawn at random and :math:`v = \sum_m \epsilon_m s_m`, it is the mean of
    :math:`\epsilon_n s_n^\top v`: two derivatives of the batch, none of a row. Their sum is :math:`|v|^2 \ge 0`.
    """
    log_q = detach_provenance(site["fn"].log_prob(site["value"])).reshape(shape)
    if not log_q.requires_grad:
        return torch.zeros_like(log_q)
    signs = torch.empty_like(log_q).bernoulli_(0.5).mul_(2).sub_(1).detach().requires_grad_()
    leaves = list(parameters.values())
    scores = torch.autograd.grad((signs * log_q).sum(), leaves, create_graph=True, allow_unused=True)
    products = [(score * score.detach()).sum() for score in scores if score is not None]
    (along,) = torch.autograd.grad(torch.stack(products).sum(), signs, retain_graph=True)
    return (signs * along).detach()


def _rows(args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The first tensor among the arguments, as rows."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim():
            rows = value.detach().reshape(len(value), -1)
            return rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())
    raise ValueError("baseline: expected a tensor of rows among the guide's arguments for kind='network'; got none.")


def _place(site: Any, met: _Sites, rows: Tensor, part: Baseline) -> Tensor:
    """The baseline of the rows that a site's entries belong to, in the dimension of their plate."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    for frame in frames:
        index = met.subsamples.get(frame.name)
        if len(rows) != frame.size and index is not None and int(index.max()) < len(rows):
            rows = rows[index]
        if len(rows) == frame.size:
            return part(rows).reshape(-1, *(1,) * (-frame.dim - 1))
    raise ValueError(
        f"baseline: expected site '{site['name']}' in a plate of {len(rows)} rows, those of the guide's first tensor "
        f"argument; got plates of sizes {[frame.size for frame in frames]}. Use another kind."
    )


def _sum_to(site: Any, observed: list[Any]) -> Tensor:
    """Log-likelihoods of observed sites in nats, without scale, summed to the plates of a latent site."""
    kept = {frame.name for frame in site["cond_indep_stack"]}
    total: Any = 0.0
    for other in observed:
        value = other["unscaled_log_prob"]
        value = value if other["mask"] is None else torch.where(torch.as_tensor(other["mask"]), value, 0.0)
        for frame in other["cond_indep_stack"]:
            if frame.vectorized and frame.name not in kept:
                value = value.sum(frame.dim, keepdim=True)
        total = total + value
    return _squeeze(total)


def _squeeze(value: Tensor) -> Tensor:
    while value.dim() and value.shape[0] == 1:
        value = value.squeeze(0)
    return value


def _key(site: Any) -> str:
    """A name that torch takes for a part."""
    return site["name"].replace(".", "_")


def _family(site: Any) -> str:
    fn = site["fn"]
    return type(getattr(fn, "base_dist", fn)).__name__
