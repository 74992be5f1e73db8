"""Engines: how the actions of A, P, J and their adjoints are computed.

Shapes are annotated in these words: block (the vectors of a block), trial, time, unit (of the
state, or of a layer's part of it), feature (of an input), parameter; row (a trial and a time),
output (of a function of rows); variable and hidden (whose pairs are a layer's units), map (gates
times hidden), diagonal, rank (columns of a thin factor), coefficient (columns of F, with K = F F*),
column (of the matrices of :mod:`kpops.engines.gated.unit_blocks`), to and from (variables of a
unit). Steps are trial and time, or the trials of one time.
"""
