"""What a run can be refused for before its model is loaded: one place for `train`, a dry run and a comparison."""

import os

from tutelage.config import TrainingConfig
from tutelage.models.loading import base_of, require_gpu_if_asked
from tutelage.models.target_modules import check_target_modules
from tutelage.monitoring.checks import check_monitoring
from tutelage.rollouts.vllm_sampler import require_vllm
from tutelage.training.build import trainer_class
from tutelage.training.distribution import check_distribution
from tutelage.training.inputs import TrainingInputs, prepare_inputs
from tutelage.training.optimization import check_optimization
from tutelage.training.reward_check import check_reward
from tutelage.training.rewards import JudgeReward


def checked_inputs(config: TrainingConfig, *, ask_reward: bool = True) -> TrainingInputs:
    """The rows of a run, tokenised, once everything else about it has been checked.

    ask_reward: score a few gold answers, or call the judge once, which a run whose steps are all done needs no more. In
    one of several processes an own reward waits until these are set up: it may ask for its rank, or load a model.
    Raises ConfigError, DataError, ModelError, TrainingError; writes nothing but the model cache.
    """
    check_distribution(config)
    if config.rollout_backend == "vllm":
        require_vllm()
    trainer_class(config.loss)
    check_optimization(config)
    require_gpu_if_asked(config)
    inputs = prepare_inputs(config)
    check_monitoring(config, inputs.template, inputs.source)
    if config.is_peft and base_of(inputs.source) == inputs.source:  # an adapter that is there has its layers
        check_target_modules(config, inputs.source)
    if ask_reward and inputs.scores is not None:
        if isinstance(inputs.scores.reward, JudgeReward):
            inputs.scores.reward.judge.check()
        elif os.environ.get("WORLD_SIZE", "1") == "1":
            inputs.scores.of_gold = check_reward(inputs.scores, inputs.train_items)
    return inputs
