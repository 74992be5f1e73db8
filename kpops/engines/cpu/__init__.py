"""What Numba compiles for the CPU: `gated` and `gram` hand out, `*_kernels` are the loops."""
