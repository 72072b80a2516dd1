"""Spaces: every suggested point is a valid experiment, conditions hold, the same seed gives the same points, points move between spaces."""

import pickle
import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import SWEEPS, study

from ray_ltdd.config import ExperimentConfig, validate
from ray_ltdd.search.load import load_sweep
from ray_ltdd.search.names import value_of
from ray_ltdd.search.space import Choice, Parameter, Range, Space
from ray_ltdd.yaml_files import with_settings


@pytest.fixture(scope="module")
def full():
    return load_sweep(next(path for path in SWEEPS if path.name == "digits_full.yaml")).cells[0]


class Drawn:
    """A trial whose values hypothesis draws, recording what it was asked."""

    def __init__(self, data):
        self.data, self.asked = data, []

    def suggest_categorical(self, name, choices):
        self.asked.append(name)
        return self.data.draw(st.sampled_from(choices), label=name)

    def suggest_float(self, name, low, high, *, step=None, log=False):
        self.asked.append(name)
        return self.data.draw(st.floats(low, high), label=name)

    def suggest_int(self, name, low, high, *, step=1, log=False):
        self.asked.append(name)
        return self.data.draw(st.integers(0, (high - low) // step), label=name) * step + low


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_every_point_of_a_shipped_space_is_a_valid_experiment_and_its_conditions_hold(full, data):
    trial = Drawn(data)
    point = full.space.suggest(trial)
    assert trial.asked == list(point) and full.space.contains(point)
    experiment = full.trial(point)
    for name, value in point.items():
        assert value_of(experiment, name) == value
    schedule = point["calibrate.momentum.schedule"]
    assert ("calibrate.momentum.value" in point) == (schedule in ("constant", "warmup"))
    assert ("calibrate.momentum.exponent" in point) == (schedule == "power")
    assert ("calibrate.batch_size" in point) == (schedule != "cumulative")
    assert ("calibrate.beta" in point) == (point["calibrate.class_weights"] == "effective_number")
    # what is not searched is as it is without a search
    plain = full.trial()
    assert experiment.split == plain.split and experiment.evaluate == plain.evaluate and experiment.experts == plain.experts


@pytest.mark.parametrize(
    "sampler", [optuna.samplers.RandomSampler, lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4, group=True)]
)
def test_one_seed_gives_one_sequence_of_points(full, sampler):
    def points(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            asked = study(sampler(seed))
        found = []
        for _ in range(14):
            trial = asked.ask()
            point = full.space.suggest(trial)
            assert point == trial.params and list(point) == list(trial.params) and full.space.contains(point)
            full.trial(point)
            asked.tell(trial, point["recover.steps"] / 600 - point["relabel.tau"])
            found.append(point)
        return found

    assert points(3) == points(3) != points(4)


@settings(deadline=None, max_examples=200)
@given(
    hundredths=st.tuples(*[st.integers(-5000, 5000)] * 2), by=st.integers(1, 900), steps=st.integers(1, 9), whole=st.booleans(), stepped=st.booleans()
)
def test_a_range_contains_exactly_what_optuna_can_suggest(hundredths, by, steps, whole, stepped):
    start, other = hundredths
    scale = 1 if whole else 100
    low, high, value, step = start / scale, (start + by * steps) / scale, other / scale, by / scale if stepped else None
    if whole:
        distribution = optuna.distributions.IntDistribution(int(low), int(high), step=int(step or 1))
    else:
        distribution = optuna.distributions.FloatDistribution(low, high, step=step)
    domain = Range(low, high, whole, False, step)
    for x in (value, low, high, (start + by) / scale, (start + 0.4 * by) / scale, (low + high) / 2, high + 1):
        # optuna cuts what is no whole number
        expected = distribution._contains(x) and (not whole or float(x).is_integer())
        assert domain.contains(x) == expected, x
    assert not domain.contains(True) and not domain.contains(None) and not domain.contains("1") and not domain.contains(float("nan"))


def test_true_is_not_one():
    assert Choice((1, 2)).contains(1.0) and not Choice((1, 2)).contains(True)
    assert Choice((True, False)).contains(True) and not Choice((True, False)).contains(1)
    assert Choice((None, "a")).contains(None) and not Choice(("a",)).contains(None)


A = Parameter("a", ("recover.flip",), Choice((True, False)))
B = Parameter("b", ("recover.steps",), Range(1, 10, whole=True), (("a", (True,)),))
C = Parameter("c", ("relabel.tau",), Range(0, 2), (("b2", (5,)),))
B2 = Parameter("b2", ("recover.exchange_every",), Choice((5, 6)), (("a", (True,)),))


def test_nested_conditions():
    space = Space((A, B2, C))
    assert space.contains({"a": False}) and not space.contains({"a": False, "b2": 5}) and not space.contains({"a": True})
    assert space.contains({"a": True, "b2": 6}) and not space.contains({"a": True, "b2": 5})
    assert space.contains({"a": True, "b2": 5, "c": 1.0}) and not space.contains({"a": True, "b2": 6, "c": 1.0})
    assert space.settings({"a": True, "b2": 5, "c": 1.0}) == {"recover.flip": True, "recover.exchange_every": 5, "relabel.tau": 1.0}
    with pytest.raises(KeyError):
        space.settings({"a": True})


def test_what_a_space_lacks_is_dropped_from_a_neighbours_point():
    point = {"a": True, "b": 7, "b2": 5, "c": 1.5}
    assert Space((A, B, B2, C)).transfer(point) == point
    assert Space((A, B)).transfer(point) == {"a": True, "b": 7}
    # out of range: dropped; and what exists only under a dropped value goes with it
    assert Space((A, Parameter("b", B.sets, Range(1, 5, whole=True), B.when))).transfer(point) == {"a": True}
    assert Space((Parameter("a", A.sets, Choice((False, None))), B, B2, C)).transfer(point) == {}
    assert Space((A, B, B2, C)).transfer({"a": False, "b": 7}) == {"a": False}


def test_an_enqueued_point_is_what_the_trial_gets_and_the_rest_is_drawn():
    space = Space((A, B, B2, C))
    asked = study(optuna.samplers.RandomSampler(seed=0))
    asked.enqueue_trial(space.transfer({"a": True, "b2": 5, "x": 3}))
    point = space.suggest(asked.ask())
    assert (point["a"], point["b2"]) == (True, 5) and set(point) == {"a", "b", "b2", "c"} and space.contains(point)


def test_a_space_in_an_experiment_has_no_conditions_on_fixed_settings():
    labels = (("relabel.labels", ("stored",)),)
    under = Parameter("d", ("relabel.stored_epochs",), Range(1, 9, whole=True), labels)
    below = Parameter("e", ("relabel.tau",), Range(0, 1), (("d2", (1,)),))
    parent = Parameter("d2", ("recover.batch_size",), Choice((1, 2)), labels)
    space = Space((A, B, under, parent, below))
    assert [p.name for p in space.within(ExperimentConfig()).parameters] == ["a", "b"]
    stored = space.within(validate({"relabel": {"labels": "stored"}}, "x"))
    assert [(p.name, p.when) for p in stored.parameters] == [("a", ()), ("b", B.when), ("d", ()), ("d2", ()), ("e", below.when)]


def test_the_settings_as_they_are_are_a_point(full):
    point = full.space.point_of(full.trial())
    assert full.space.contains(point) and full.trial(point) == full.trial()
    assert point["calibrate.momentum.schedule"] == "cumulative" and point["recover.steps"] == 150
    assert Space((A, B)).point_of(validate({"recover": {"flip": True, "steps": 11}}, "x")) == {"a": True}
    tied = Space((Parameter("s", ("select_crops.min_scale", "recover.min_scale"), Range(0.1, 1)),))
    assert tied.point_of(ExperimentConfig()) == {"s": 0.5}
    assert tied.point_of(validate({"recover": {"min_scale": 0.6}}, "x")) == {}


def test_spaces_and_cells_are_pickled(full):
    again = pickle.loads(pickle.dumps(full))
    assert again == full and again.fingerprint == full.fingerprint
    suggest = pickle.loads(pickle.dumps(full.space.suggest))
    point = suggest(study(optuna.samplers.RandomSampler(seed=1)).ask())
    assert point == full.space.suggest(study(optuna.samplers.RandomSampler(seed=1)).ask())


def test_settings_are_put_in_without_touching_what_was_there():
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": None}
    changed = with_settings(values, {"a.c.d": 3, "a.c.x": 4, "e.f": 5, "g": 6})
    assert changed == {"a": {"b": 1, "c": {"d": 3, "x": 4}}, "e": {"f": 5}, "g": 6}
    assert values == {"a": {"b": 1, "c": {"d": 2}}, "e": None}
