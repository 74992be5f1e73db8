"""Spectra, traces and ranks on tensors: no labels, no public names; `spectral/` labels them.

Axes in annotations: `vector` numbers the vectors of a block, `entry` the entries of a flat vector
(of its `image`, where that lies in another space), `*dims` its dimensions, `basis` the vectors of a
basis; `problem` numbers independent problems of one size, `mode` modes, `probe` random vectors,
`value` values of a spectrum, `node` nodes of a Gauss rule, `recursion` and `step` those of Lanczos.
`k`, `q` and `r` are the numbers of random vectors, of basis vectors of their images, and the rank.
"""
