"""CUDA C++ kernels, compiled at run time, where Triton takes many instructions: scores, choices, main dimensions."""
