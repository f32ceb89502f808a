"""Models, posteriors and data sets of the studies."""
