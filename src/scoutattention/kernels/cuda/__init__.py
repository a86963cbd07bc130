"""CUDA C++ kernels, compiled at run time, where others are slow: scores, choices, factors, and main dimensions."""
