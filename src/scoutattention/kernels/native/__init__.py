"""The kernels of an ordinary CPU: C++ behind checks of every argument."""
