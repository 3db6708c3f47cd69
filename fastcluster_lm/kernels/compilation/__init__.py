"""How the kernels' C++ becomes libraries: without torch, so that an installation can do it; it loads none."""
