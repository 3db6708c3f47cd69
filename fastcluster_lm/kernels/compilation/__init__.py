"""How the kernels' C++ becomes libraries, without torch, so that an installation can do it; it loads none of them.

Its modules name each other relatively: setup.py loads this folder by its path, where the package cannot be imported yet
"""
