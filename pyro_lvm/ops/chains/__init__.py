"""The kernel of hidden Markov models: sums, maxima and draws over the paths of chains of discrete states.

All functions take the same logarithms: `initial`, log p(first state), broadcastable to (*batch, K); `transition`, log
p(next | previous), broadcastable to (*batch, T - 1, K, K), with a time axis of 1 if all steps share a matrix;
`emission`, log p(x_t | state), of shape (*batch, T, K); and `lengths`, shape (*batch,), of chains padded on the right.
"""

from pyro_lvm.ops.chains.decoding import viterbi
from pyro_lvm.ops.chains.filtering import Filtered, filter, fixed_lag, predict
from pyro_lvm.ops.chains.likelihood import log_likelihood
from pyro_lvm.ops.chains.sampling import sample
from pyro_lvm.ops.chains.smoothing import Smoothed, smooth

__all__ = ["Filtered", "Smoothed", "filter", "fixed_lag", "log_likelihood", "predict", "sample", "smooth", "viterbi"]
