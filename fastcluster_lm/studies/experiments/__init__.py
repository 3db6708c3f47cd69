"""All studies by name: a module each, which imports no other; what two of them need stands one folder up."""

from fastcluster_lm.studies.experiments import (
    alignment,
    architectures,
    complex_alignment,
    conditions,
    dynamics,
    hard_examples,
    identity_pretraining,
    multi_token,
    patching,
    real_llm,
    regulariser,
    size,
    subclusters,
    unseen,
    unseen_tasks,
    vocabulary,
)
from fastcluster_lm.studies.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        dynamics.RISE,
        dynamics.AFTER,
        unseen.STUDY,
        subclusters.STUDY,
        hard_examples.STUDY,
        conditions.STUDY,
        size.WIDTH,
        size.DEPTH,
        regulariser.STUDY,
        patching.STUDY,
        identity_pretraining.STUDY,
        alignment.STUDY,
        unseen_tasks.STUDY,
        vocabulary.STUDY,
        multi_token.STUDY,
        architectures.STUDY,
        complex_alignment.STUDY,
    )
}

# needs weights that not everyone has: no part of `all`, and its p is corrected for no other study
APART: dict[str, Study] = {real_llm.STUDY.name: real_llm.STUDY}
