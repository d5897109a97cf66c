"""A study's model as something that can be trained, after its self-tests."""

from hubbub.local.learner import Learner
from hubbub.study import Study, made_up


def make_learner(study: Study) -> Learner:
    """The study's model, after its self-tests on made-up records of the study's shapes.

    Raises:
        CodeError: The model cannot be trained as the study asks.
    """
    if study.code.model is not None:
        from hubbub.local.torch_model import TorchModel

        learner: Learner = TorchModel(study.code, study.settings.study.seed)
    else:
        from hubbub.local.arrays import ArrayModel

        learner = ArrayModel(study.code)
    learner.self_test(made_up(study.settings.data), per_example=study.settings.privacy.unit == "example")
    return learner
