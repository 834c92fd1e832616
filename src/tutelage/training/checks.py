"""What a run can be refused for before its model is loaded: one place for `train`, a dry run and a comparison."""

from tutelage.config import TrainingConfig
from tutelage.models.loading import require_gpu_if_asked
from tutelage.training.build import trainer_class
from tutelage.training.inputs import TrainingInputs, prepare_inputs
from tutelage.training.optimization import check_optimization
from tutelage.training.rewards import JudgeReward


def checked_inputs(config: TrainingConfig) -> TrainingInputs:
    """The rows of a run, tokenised, once everything else about it has been checked; a judge is called once.

    Raises ConfigError, DataError, ModelError; writes nothing but the model cache.
    """
    trainer_class(config.loss)
    check_optimization(config)
    require_gpu_if_asked(config)
    inputs = prepare_inputs(config)
    if inputs.scores is not None and isinstance(inputs.scores.reward, JudgeReward):
        inputs.scores.reward.judge.check()
    return inputs
