"""The op label_agreement: ARI, AMI and three F1s of many labelings of the same points at once."""

from fastcluster_lm.kernels.label_agreement.op import label_agreement

__all__ = ["label_agreement"]
