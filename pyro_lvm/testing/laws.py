r"""Laws that every model, guide and inference obeys, ours or yours. A law that is broken raises an AssertionError.

=============================================  =====================================================================
law                                            holds for
=============================================  =====================================================================
`density_integrates_to_one`                    every fit
`sampler_agrees_with_density`                  every fit that can generate rows
`enumeration_agrees_with_conditioning`         programs with one discrete latent site per row, rows independent
`em_never_falls`                               every program that EM trains
`em_gradient_is_exact`                         as `enumeration_agrees_with_conditioning`, float64
`closed_form_is_stationary`                    every program that EM trains in closed form, float64
`parameters_are_recovered`                     point fits of identifiable models
`bound_is_below_evidence`                      SVI fits whose guide has a density (not a point)
`save_load_is_exact`, `seeds_reproduce`,       every fit
`fits_do_not_touch`
`resume_is_exact`                              every inference that works in steps (not MCMC)
`minibatches_are_unbiased`                     programs without continuous latent sites, plate of the rows "data"
`dtype_is_kept`                                programs whose parameters start in the data's type
`rejects_bad_rows`                             models with `check` and `initialize`
`missing_entries_are_marginalised`             fits of models with `handles_missing`
=============================================  =====================================================================

Statistical laws allow k = 5 standard errors: a true law fails less than once in a million runs, and seeds are fixed.
The others are exact to the stated relative error. Models passed in are copied, initialised on the data as `lvm.fit`
does, and run in a parameter store of their own; plain functions start from their initial values.
"""

from pyro_lvm.testing.checks import require
from pyro_lvm.testing.density_laws import (
    bound_is_below_evidence,
    density_integrates_to_one,
    sampler_agrees_with_density,
)
from pyro_lvm.testing.em_laws import (
    closed_form_is_stationary,
    em_gradient_is_exact,
    em_never_falls,
    enumeration_agrees_with_conditioning,
    parameters_are_recovered,
)
from pyro_lvm.testing.fit_laws import (
    dtype_is_kept,
    fits_do_not_touch,
    minibatches_are_unbiased,
    resume_is_exact,
    save_load_is_exact,
    seeds_reproduce,
)
from pyro_lvm.testing.input_laws import BAD_ROWS, BAD_SEQUENCES, rejects_bad_rows
from pyro_lvm.testing.missing_laws import missing_entries_are_marginalised

__all__ = [
    "BAD_ROWS",
    "BAD_SEQUENCES",
    "bound_is_below_evidence",
    "closed_form_is_stationary",
    "density_integrates_to_one",
    "dtype_is_kept",
    "em_gradient_is_exact",
    "em_never_falls",
    "enumeration_agrees_with_conditioning",
    "fits_do_not_touch",
    "minibatches_are_unbiased",
    "missing_entries_are_marginalised",
    "parameters_are_recovered",
    "rejects_bad_rows",
    "require",
    "resume_is_exact",
    "sampler_agrees_with_density",
    "save_load_is_exact",
    "seeds_reproduce",
]
