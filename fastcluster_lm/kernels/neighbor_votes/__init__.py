"""The op neighbor_votes: shares and majorities of nearest neighbours' labels, under many labelings at once."""

from fastcluster_lm.kernels.neighbor_votes.op import first_others, most_shared, neighbor_votes

__all__ = ["first_others", "most_shared", "neighbor_votes"]
