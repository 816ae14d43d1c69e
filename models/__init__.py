"""Generative programs, one file each."""

from pyro_lvm.models.autoregressive_hmm import AutoregressiveHMM
from pyro_lvm.models.bernoulli_hmm import BernoulliHMM
from pyro_lvm.models.bernoulli_mixture import BernoulliMixture
from pyro_lvm.models.categorical_hmm import CategoricalHMM
from pyro_lvm.models.categorical_mixture import CategoricalMixture
from pyro_lvm.models.deep_belief_net import DeepBeliefNet
from pyro_lvm.models.dirichlet_process_mixture import DirichletProcessMixture
from pyro_lvm.models.factor_analysis import FactorAnalysis
from pyro_lvm.models.factorial_hidden_markov import FactorialHMM
from pyro_lvm.models.gaussian_hmm import GaussianHMM
from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.gaussian_mixture_hmm import GaussianMixtureHMM
from pyro_lvm.models.gaussian_rbm import GaussianRBM
from pyro_lvm.models.heterogeneous_mixture import HeterogeneousMixture
from pyro_lvm.models.hidden_markov import HiddenMarkov
from pyro_lvm.models.hidden_markov_alignment import HMMAlignment
from pyro_lvm.models.hidden_semi_markov import HiddenSemiMarkov
from pyro_lvm.models.ibm_model_1 import IBMModel1
from pyro_lvm.models.ibm_model_2 import IBMModel2
from pyro_lvm.models.independent_component_analysis import IndependentComponentAnalysis
from pyro_lvm.models.input_driven_hidden_markov import InputDrivenHMM
from pyro_lvm.models.linear_dynamical_system import LinearDynamicalSystem
from pyro_lvm.models.mixture_of_experts import MixtureOfExperts
from pyro_lvm.models.mixture_of_factor_analyzers import MixtureOfFactorAnalyzers
from pyro_lvm.models.multinomial_hmm import MultinomialHMM
from pyro_lvm.models.neural_alignment import NeuralHMMAlignment
from pyro_lvm.models.neural_hidden_markov import NeuralHMM
from pyro_lvm.models.poisson_hmm import PoissonHMM
from pyro_lvm.models.poisson_mixture import PoissonMixture
from pyro_lvm.models.probabilistic_pca import ProbabilisticPCA
from pyro_lvm.models.rbm import RBM
from pyro_lvm.models.regression_hmm import RegressionHMM
from pyro_lvm.models.sigmoid_belief_net import SigmoidBeliefNet
from pyro_lvm.models.slow_feature_analysis import SlowFeatureAnalysis
from pyro_lvm.models.sparse_coding import SparseCoding
from pyro_lvm.models.student_t_hmm import StudentTHMM
from pyro_lvm.models.student_t_mixture import StudentTMixture
from pyro_lvm.models.vae import VAE

__all__ = [
    "RBM",
    "VAE",
    "AutoregressiveHMM",
    "BernoulliHMM",
    "BernoulliMixture",
    "CategoricalHMM",
    "CategoricalMixture",
    "DeepBeliefNet",
    "DirichletProcessMixture",
    "FactorAnalysis",
    "FactorialHMM",
    "GaussianHMM",
    "GaussianMixture",
    "GaussianMixtureHMM",
    "GaussianRBM",
    "HMMAlignment",
    "HeterogeneousMixture",
    "HiddenMarkov",
    "HiddenSemiMarkov",
    "IBMModel1",
    "IBMModel2",
    "IndependentComponentAnalysis",
    "InputDrivenHMM",
    "LinearDynamicalSystem",
    "MixtureOfExperts",
    "MixtureOfFactorAnalyzers",
    "MultinomialHMM",
    "NeuralHMM",
    "NeuralHMMAlignment",
    "PoissonHMM",
    "PoissonMixture",
    "ProbabilisticPCA",
    "RegressionHMM",
    "SigmoidBeliefNet",
    "SlowFeatureAnalysis",
    "SparseCoding",
    "StudentTHMM",
    "StudentTMixture",
]
