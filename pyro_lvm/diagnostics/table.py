"""Tables that print all of their columns."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["Table"]


class Table(pd.DataFrame):
    """A DataFrame whose columns are all printed, in full, however narrow the terminal is; pandas leaves some out.

    Example:
        >>> from pyro_lvm.diagnostics import Table
        >>> Table({"name": ["a"], "what it is": "a sentence that is longer than pandas would print on its own"})
          name                                                    what it is
        0    a  a sentence that is longer than pandas would print on its own
    """

    @property
    def _constructor(self) -> Any:
        return Table

    def __repr__(self) -> str:
        return self.to_string(max_rows=pd.get_option("display.max_rows"))
