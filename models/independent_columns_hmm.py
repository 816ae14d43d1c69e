r"""What hidden Markov models share whose columns are of one kind and independent given the state.

.. math:: x_{ntj} \mid z_{nt} = k \sim F(\theta_{kj})
"""

from __future__ import annotations

from typing import Any, ClassVar

from pyro_lvm.distributions.columns import ColumnFamily
from pyro_lvm.distributions.rows import IndependentColumns
from pyro_lvm.models.hidden_markov import HiddenMarkov, Priors, checked_width
from pyro_lvm.ops.topology import Topology

__all__ = ["IndependentColumnsHMM"]


class IndependentColumnsHMM(HiddenMarkov):
    """Base: the law of each column, and advice for values outside of its support, are the subclass's.

    Args:
        num_states: K >= 1.
        data_dim: Number of columns d; taken from the data by `initialize` if None.
        topology: As `HiddenMarkov` takes it.
        priors: As `HiddenMarkov` takes them.

    Attributes:
        column: The law of each column.
        other_support: What to do with values outside of its support, for the error.
    """

    column: ClassVar[type[ColumnFamily]]
    other_support: ClassVar[str]

    def __init__(
        self,
        num_states: int,
        data_dim: int | None = None,
        topology: Topology = None,
        priors: bool | Priors | None = None,
    ) -> None:
        rows = IndependentColumns(self.column(), checked_width(self._name, data_dim), self.other_support)
        super().__init__(num_states, rows, topology, priors)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self._config_of_chain, "data_dim": self.data_dim}
