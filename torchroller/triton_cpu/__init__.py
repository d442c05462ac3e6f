"""A Triton backend that compiles Triton kernels for the CPU, found by entry point on the stock wheel."""
