"""The kernels of a GPU in Triton; its interpreter runs them on a CPU, slowly, for tests."""
