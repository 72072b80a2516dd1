"""Which trials stop early: decided from the values the study holds, so that a restart forgets nothing and parallel trials are compared at once."""

from statistics import median

import optuna
from optuna.trial import FrozenTrial, TrialState

from ray_ltdd.search.config import PrunerConfig


def make_pruner(config: PrunerConfig) -> optuna.pruners.BasePruner:
    """The pruner the settings ask for; values are to be reported at `config.rungs`."""
    if config.kind == "median":
        return MedianRungPruner(config.n_startup_trials)
    if config.kind == "asha":
        return RungPruner(config.reduction_factor)
    return optuna.pruners.NopPruner()


def last_values(study: optuna.Study, trial: FrozenTrial) -> tuple[float, list[float]]:
    """What a trial reported last and what others did at the same step, those stopped there and those at work too; larger is better in both.

    Failed trials do not count. A trial that has reported nothing is above all others, of which there are none.
    """
    step = trial.last_step
    if step is None:
        return float("inf"), []
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.state != TrialState.FAIL]
    return sign * trial.intermediate_values[step], [sign * t.intermediate_values[step] for t in others if step in t.intermediate_values]


class MedianRungPruner(optuna.pruners.BasePruner):
    """Stops what is below the median at its step.

    Optuna's own holds a trial's best value so far against completed trials alone: unlike steps, and a bar that only survivors set.
    """

    def __init__(self, n_startup_trials: int) -> None:
        """Args: trials that end, stopped or not, before any is stopped."""
        self._n_startup_trials = n_startup_trials

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last value is worse than the median of the others' at its step."""
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        own, others = last_values(study, trial)
        return len(ended) >= self._n_startup_trials and bool(others) and own < median(others)


class RungPruner(optuna.pruners.BasePruner):
    """Asynchronous successive halving where rungs are the steps that values are reported at.

    Optuna's own takes rungs at powers of the reduction factor and calls the first step past one its rung: trials reported at other steps would pass
    several rungs at once.
    """

    def __init__(self, reduction_factor: int) -> None:
        """Args: of the trials that have reached a rung, the best 1/reduction_factor pass, and always the best one."""
        self._reduction_factor = reduction_factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial's last value is not among the best of all values at its step; trials that failed do not count."""
        own, others = last_values(study, trial)
        ranked = sorted([own, *others], reverse=True)
        return own < ranked[max(len(ranked) // self._reduction_factor, 1) - 1]
