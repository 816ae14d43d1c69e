"""What training leaves behind: programs, their parameters, draws, and how rows reach them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.handlers.rows import rows
from pyro_lvm.infer.parameters import Parameter, Parameters
from pyro_lvm.infer.structure import structure
from pyro_lvm.protocols import LatentVariableModel
from pyro_lvm.training.choices import describe
from pyro_lvm.training.data import Arguments, in_order
from pyro_lvm.training.guide_draws import draw_guide, guide_sites, posterior_means
from pyro_lvm.training.interruption import Unfinished
from pyro_lvm.training.labels import (
    Labelled,
    LabelledGuide,
    as_labelled,
    check_labels,
    check_ranges,
    labels_of,
)
from pyro_lvm.training.pretraining import Pretraining
from pyro_lvm.training.scope import Scope
from pyro_lvm.training.sites import check_plate

if TYPE_CHECKING:
    from pyro_lvm.evidence.ais import LogNormalizer

__all__ = ["Learned"]

GUIDE_DRAWS = 500


class Learned:
    """Programs after training, with their parameters and draws; the verbs are in `Fit`.

    Attributes:
        model: The fitted copy of the model.
        guide: The fitted copy of the guide, or None.
        inference: What trained it, with its state.
        history: Loss by epoch (nats over all rows), and validation loss if there was any.
        converged: Whether training stopped because nothing improved any more.
        stopped: Why training stopped.
        sampled: Whether the draws were given by a sampler.
        restarts: Seed, loss, epochs and convergence of every restart.
        seed: The seed that reproduces this fit.
        columns: Column names of the training data, if it had any.
        missing: Parts of the inference that a file could not hold.
        unfinished: An epoch that was interrupted, which `resume` finishes first.
        last_epoch: Steps and rows of the last epoch of a stream that tells neither; else none.
        pretraining: What is left of a greedy pretraining that was interrupted.
        guide_log_density: Log-density of each draw of the guide, nats; there once `draws` has been read.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable | None,
        inference: Any,
        scope: Scope,
        *,
        shapes: dict[str, Any],
        columns: tuple[str, ...] | None,
        plate: str,
        seed: int,
        rng_state: Tensor,
    ) -> None:
        self.model = model
        self.guide = guide
        self.inference = inference
        self.scope = scope
        self.shapes = shapes
        self.columns = columns
        self.plate = plate
        self.seed = seed
        self.rng_state = rng_state
        self.history: dict[str, list[float]] = {"loss": []}
        self.converged = False
        self.stopped = ""
        self.restarts: list[dict[str, Any]] = []
        self.seen = torch.empty(0, dtype=torch.long)
        self.trained_on: list[int] = []
        self.guide_log_density = torch.empty(0)
        self._draws: dict[str, Tensor] | None = None
        self._guide_sites: tuple[list[str], list[str]] | None = None
        self._normalizers: dict[str, LogNormalizer] | None = None
        self._laws: dict[str, Any] = {}
        self.sampled = False
        self.missing: list[str] = []
        self.last_epoch: tuple[int, int] = (0, 0)
        self.unfinished: Unfinished | None = None
        self.pretraining: Pretraining | None = None

    @property
    def params(self) -> dict[str, Tensor]:
        """The model's parameters by their names in the model, whatever found them, in the model's space.

        These are its `param` sites and, where it has priors, its continuous sample sites outside of the plate of the
        rows. Under EM and MAP they are point estimates; under coordinate ascent exact posterior means; under SVI and
        NUTS means of `draws`, components as they were drawn: if chains may number them differently, use
        `summary(x)`, which aligns them. What a guide learned inside is in `parameters()`.
        """
        with self.scope():  # outside, borrowed networks show the values that they had
            points = {name: p.value.detach().clone() for name, p in self.parameters(guide=False).items()}
        return {**points, **posterior_means(self)} if self.latent else points

    def parameters(self, guide: bool = True) -> dict[str, Parameter]:
        """The `param` sites of the model, and of the guide if asked for: what training moves."""
        arguments = self.prototype()
        with self.scope(), Parameters() as found, _pyro.validation(False):
            for program in (self.model, self.guide if guide else None):
                if program is not None:
                    structure(program, arguments.args, arguments.kwargs, fresh=False)
        return found.found

    @property
    def latent(self) -> bool:
        """Whether the fit is a law over sites that all rows share (by a guide or draws) rather than a point."""
        return self.sampled or bool(self.guide_sites[0])

    @property
    def guide_sites(self) -> tuple[list[str], list[str]]:
        """The guide's sites that all rows share, and those that every row has of its own; none without a guide."""
        if self._guide_sites is None:
            self._guide_sites = ([], []) if self.guide is None else guide_sites(self)
        return self._guide_sites

    @property
    def draws(self) -> dict[str, Tensor]:
        """Draws of the continuous latent sites, shape (chains, draws, ...); of a point fit, its one point."""
        if self._draws is None:
            if not self.latent:
                self._draws = {name: value[None, None] for name, value in self.params.items()}
            else:
                self._draws, self.guide_log_density = draw_guide(self, GUIDE_DRAWS)
        return self._draws

    @draws.setter
    def draws(self, values: dict[str, Tensor]) -> None:
        self._draws = values
        self.sampled = True

    @property
    def normalizers(self) -> dict[str, LogNormalizer]:
        """Estimated normalizers of the undirected sites that are too large to be summed up."""
        if self._normalizers is None:
            from pyro_lvm.evidence.normalizers import estimate_normalizers

            self._normalizers = {} if self.latent else estimate_normalizers(self)
        return self._normalizers

    def forget_draws(self) -> None:
        """Draw from the guide anew when `draws` are next read, and estimate normalizers anew: parameters moved."""
        self._draws = self._guide_sites = self._normalizers = None

    @property
    def program(self) -> Callable:
        """The model, taking known values of its sites by name besides its own arguments."""
        return Labelled(self.model)

    def program_at(self, values: dict[str, Tensor]) -> Callable:
        """The program at values of its sites, as drawn by a guide: labels of these sites no longer count."""
        return poutine.condition(Labelled(self.model, values), values)

    @property
    def labelled_guide(self) -> Callable | None:
        """The guide, with the program's arguments: it draws the known values of its sites."""
        return None if self.guide is None else LabelledGuide(self.guide, self.model)

    def arguments(self, x: Any) -> Arguments:
        """Rows, checked and converted for this fit's model; a table's columns are found by name."""
        if self.columns:
            x = in_order(x, self.columns)
        arguments = as_labelled(x, self.model, self.device)
        if not check_ranges(self._laws, labels_of(self.model, arguments.kwargs)):
            with self.scope():
                self._laws |= check_labels(self.model, arguments, fresh=not self.scope.params)
        if isinstance(self.model, LatentVariableModel):
            self.model.check(arguments.main)
            self.model.check_covariates(len(arguments.main), **{k: v for k, v in arguments.kwargs.items() if k != "x"})
            mine = next(iter(self.tensors().values()), arguments.main)
            if mine.is_floating_point() and mine.dtype != arguments.main.dtype:
                arguments = arguments.map(lambda t: t.to(mine.dtype) if t.is_floating_point() else t)
        check_plate(self, arguments)
        return arguments

    def observed(self, arguments: Arguments) -> dict[str, Tensor]:
        """The values that the model observes in the rows, by site."""
        with self.scope(), torch.random.fork_rng(), torch.no_grad(), _pyro.validation(False), rows(search=False):
            trace = _pyro.plain_trace(self.program, arguments.args, arguments.kwargs)
        return {name: trace.nodes[name]["value"] for name in trace.observation_nodes}

    @property
    def device(self) -> torch.device | None:
        """Where the parameters are."""
        tensors = self.tensors()
        return next(iter(tensors.values())).device if tensors else None

    def prototype(self, num_rows: int | None = None) -> Arguments:
        """Zeros in the shape of the training data, to run the programs on when only their structure matters."""
        return Arguments.zeros(self.shapes, num_rows).map(lambda t: t.to(self.device) if self.device else t)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that training writes to, by a name unique across store, model and guide."""
        found = {f"store:{name}": tensor for name, tensor in self.scope.params.items()}
        for owner, wrapped in (("model", self.model), ("guide", self.guide)):
            program = _pyro.without_handlers(wrapped)
            if isinstance(program, torch.nn.Module):
                found.update({f"{owner}:{n}": t for n, t in program.named_parameters()})
                found.update({f"{owner}:{n}": t for n, t in program.named_buffers()})
        found.update({f"network:{name}": tensor for name, tensor in self.scope.buffers.items()})
        return found

    def remarks(self) -> list[str]:
        """What a model of this package says of the parameters learned, a sentence each."""
        with self.scope():
            remarks = getattr(_pyro.without_handlers(self.model), "remarks", None)
            return remarks(self.columns) if remarks else []

    @property
    def name(self) -> str:
        """What the model is called."""
        return _name(self.model)

    def __repr__(self) -> str:
        how = describe(self.inference)
        guide = f", guide={_name(self.guide)}" if self.guide is not None else ""
        loss = f", loss={self.history['loss'][-1]:.6g}" if self.history["loss"] else ""
        return f"Fit({_name(self.model)}, {how}{guide}{loss}, {self.stopped})"


def _name(program: Any) -> str:
    return getattr(program, "__name__", type(program).__name__)
