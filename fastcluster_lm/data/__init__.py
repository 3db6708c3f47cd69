"""Task sets turned into tensors: vocabulary, instances, splits and batches; it knows no model."""

from fastcluster_lm.data.instances import Instances, build_instances
from fastcluster_lm.data.sampling import BatchSampler
from fastcluster_lm.data.splits import SplitInstructions, split_instructions
from fastcluster_lm.data.vocabulary import Vocabulary

__all__ = ["BatchSampler", "Instances", "SplitInstructions", "Vocabulary", "build_instances", "split_instructions"]
