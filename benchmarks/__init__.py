"""Measurements beside the libraries, in one run: reached as fastcluster_lm.benchmarks and by `fclm bench`."""
