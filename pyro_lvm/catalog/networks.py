"""Models with networks and with units: directed and undirected nets, trained by other means than EM."""

from __future__ import annotations

from pyro_lvm import models
from pyro_lvm.catalog.entry import Entry

__all__ = ["ENTRIES"]

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="VAE",
        model=models.VAE,
        summary="rows that a network makes from a normal latent vector: zeros and ones, or real; optional context",
        inferences=("svi", "importance-weighted"),
        guides=("amortized", "inverse-autoregressive", "semi-amortized", "local"),
        data="digits234",
        reference="Kingma, Welling (2014), Auto-encoding variational Bayes",
        example=lambda **kwargs: models.VAE(**{"latent_dim": 2, "hidden": (16,), **kwargs}),
        variants=tuple({"likelihood": kind} for kind in ("bernoulli", "gaussian")),
    ),
    Entry(
        name="SigmoidBeliefNet",
        model=models.SigmoidBeliefNet,
        summary="rows of zeros and ones from layers of binary units; with its recognition net a Helmholtz machine",
        inferences=("wake-sleep", "svi", "nvil", "relax"),
        guides=("recognition-net",),
        data="digits234",
        reference="Dayan, Hinton, Neal, Zemel (1995), The Helmholtz machine",
        example=lambda **kwargs: models.SigmoidBeliefNet(**{"hidden": (4,), **kwargs}),
        variants=({}, {"hidden": (3, 2)}),
    ),
    Entry(
        name="RBM",
        model=models.RBM,
        summary="zeros and ones that interact through hidden units",
        inferences=("pcd", "cd"),
        guides=(),
        data="digits234",
        reference="Hinton (2002), Training products of experts by contrastive divergence; Montavon, Müller (2012)",
        example=lambda **kwargs: models.RBM(**{"num_hidden": 4, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="GaussianRBM",
        model=models.GaussianRBM,
        summary="real vectors, normal given binary hidden units; learned variances",
        inferences=("pcd", "cd"),
        guides=(),
        data="faithful",
        reference="Cho, Ilin, Raiko (2011), Improved learning of Gaussian-Bernoulli restricted Boltzmann machines",
        example=lambda **kwargs: models.GaussianRBM(**{"num_hidden": 3, **kwargs}),
        variants=({},),
    ),
    Entry(
        name="DeepBeliefNet",
        model=models.DeepBeliefNet,
        summary="rows of zeros and ones from directed layers under a restricted Boltzmann machine",
        inferences=("up-down",),
        guides=("recognition-net",),
        data="digits234",
        reference="Hinton, Osindero, Teh (2006), A fast learning algorithm for deep belief nets",
        example=lambda **kwargs: models.DeepBeliefNet(**{"hidden": (4, 3), **kwargs}),
        variants=({}, {"hidden": (4, 3, 3)}),
    ),
)
