"""The engines whose verbs the tests run on the same cases: all that take points on the CPU."""

from fastcluster_lm.config import ENGINES

# rapids takes points on a GPU, and has its own tests
ON_CPU = [name for name in ENGINES if name != "rapids"]
