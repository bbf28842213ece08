"""Modules shared by masking methods: Gumbel sampling, mask estimator, top-down path."""
