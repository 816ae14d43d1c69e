"""The table of model/guide pairs: what ships, how it may be trained, on what data to see it, and where it comes from.

The command line, the laws in `pyro_lvm.testing` and the README's table all read it.
"""

from __future__ import annotations

from pyro_lvm import guides, models
from pyro_lvm.catalog import chains, factors, mixtures, networks
from pyro_lvm.catalog.entry import Entry
from pyro_lvm.training import choices

__all__ = ["CATALOG", "Entry"]

choices.GUIDES.update(
    {
        "conjugate": guides.Conjugate,
        "map": guides.MAP,
        "exact-gaussian": guides.ExactGaussian,
        "normal": guides.AutoNormal,
        "multivariate-normal": guides.AutoMultivariateNormal,
        "amortized": guides.AmortizedGaussian,
        "inverse-autoregressive": guides.InverseAutoregressive,
        "local": guides.LocalGaussian,
        "sparse-codes": guides.SparseCodes,
        "semi-amortized": guides.SemiAmortized,
        "recognition-net": guides.RecognitionNet,
    }
)

CATALOG: dict[str, Entry] = {
    entry.name: entry for entry in (*mixtures.ENTRIES, *chains.ENTRIES, *factors.ENTRIES, *networks.ENTRIES)
}
choices.MODELS.update({name: entry.model for name, entry in CATALOG.items()})
# their data are pairs of sentences, not rows of a table: no entry, but files name them
choices.MODELS.update(
    {
        "HMMAlignment": models.HMMAlignment,
        "IBMModel1": models.IBMModel1,
        "IBMModel2": models.IBMModel2,
        "NeuralHMMAlignment": models.NeuralHMMAlignment,
    }
)
choices.LADDERS.update({entry.model: entry.guides for entry in (*factors.ENTRIES, *networks.ENTRIES)})
choices.PAIRS.update(
    {
        entry.model: (entry.inferences[0], entry.guides[0] if entry.guides else None)
        for entry in CATALOG.values()
        if entry in factors.ENTRIES or ("em" not in entry.inferences and not entry.takes_priors)
    }
)
# without noise rows determine their sources, and EM is maximum likelihood; with noise a guide draws them
choices.PAIRS[models.IndependentComponentAnalysis] = (None, "local")
