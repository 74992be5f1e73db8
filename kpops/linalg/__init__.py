"""Spectra, traces and ranks on tensors: no labels, no public names; `spectral/` labels them.

Axes in annotations: `vector` numbers the vectors of a block, `entry` the entries of a flat vector
and `*dims` its dimensions; `problem` numbers independent problems of one size, `mode` modes,
`probe` random vectors, `value` values of a spectrum; `k` is the size of a small square matrix, one
row for each random vector or each vector of a basis.
"""
