"""Small tested kernels: log-densities and weighted moments as matrix products."""
