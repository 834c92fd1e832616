"""What a run can be refused for before its model is loaded: one place for `train`, a dry run and a comparison."""

from tutelage.config import TrainingConfig
from tutelage.models.loading import require_gpu_if_asked
from tutelage.training.build import trainer_class
from tutelage.training.inputs import TrainingInputs, prepare_inputs
from tutelage.training.optimization import check_optimization
from tutelage.training.rewards import JudgeReward


def checked_inputs(config: TrainingConfig, *, ask_judge: bool = True) -> TrainingInputs:
    """The rows of a run, tokenised, once everything else about it has been checked.

    ask_judge: call the judge of a reward once, which a run whose steps are all done needs no more. Raises ConfigError,
    DataError, ModelError; writes nothing but the model cache.
    """
    trainer_class(config.loss)
    check_optimization(config)
    require_gpu_if_asked(config)
    inputs = prepare_inputs(config)
    if ask_judge and inputs.scores is not None and isinstance(inputs.scores.reward, JudgeReward):
        inputs.scores.reward.judge.check()
    return inputs
