"""The language models that are trained; they return hidden states as outputs and know nothing of scores."""

from fastcluster_lm.model.evaluation import Evaluator
from fastcluster_lm.model.fusing import block_policy
from fastcluster_lm.model.gpt2 import GPT2, HiddenOutput, ModelOutput, TrainableModel, hugging_face_state

__all__ = ["GPT2", "Evaluator", "HiddenOutput", "TrainableModel", "ModelOutput", "block_policy", "hugging_face_state"]
