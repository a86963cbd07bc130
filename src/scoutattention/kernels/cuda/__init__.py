"""CUDA C++ kernels, compiled at run time, for what Triton cannot say in few instructions: scores and choices."""
