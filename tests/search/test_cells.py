"""Cells: their order, neighbours, interleaving, names and identities."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweeps import BASE, dump, write

from ray_ltdd.search.cells import Cell, interleave, neighbour, snake
from ray_ltdd.search.config import PrunerConfig
from ray_ltdd.search.load import load_sweep
from ray_ltdd.search.space import Space

LENGTHS = st.lists(st.integers(1, 3), min_size=1, max_size=3)


def grid(lengths):
    return [Cell("-".join(map(str, p)), "b", {}, p, {}, {}, Space(()), ("top1",)) for p in snake(lengths)]


def distance(a, b):
    return sum(abs(x - y) for x, y in zip(a.position, b.position, strict=True))


@given(LENGTHS)
def test_the_order_visits_every_cell_once_in_single_steps(lengths):
    cells = grid(lengths)
    assert sorted(cell.position for cell in cells) == list(itertools.product(*map(range, lengths))) and len(cells) == math.prod(lengths)
    assert all(distance(a, b) == 1 for a, b in itertools.pairwise(cells))


@given(LENGTHS)
def test_a_neighbour_comes_earlier_is_one_step_away_and_of_the_same_base_if_it_can(lengths):
    cells = grid(lengths)
    assert neighbour(cells, cells[0]) is None
    for i, cell in enumerate(cells[1:], 1):
        found = neighbour(cells, cell)
        assert found is not None and cells.index(found) < i and distance(found, cell) == 1
        same_base = [other for other in cells[:i] if distance(other, cell) == 1 and other.position[0] == cell.position[0]]
        assert (found in same_base) == bool(same_base)


@given(LENGTHS, st.integers(1, 6), st.integers(0, 9), st.data())
def test_trials_are_interleaved_and_a_cell_waits_for_its_neighbours_head_start(lengths, trials, head_start, data):
    cells = grid(lengths)
    done = {cell.name: data.draw(st.integers(0, trials + 1)) for cell in cells if data.draw(st.booleans())}
    started = {cell.name: done.get(cell.name, 0) for cell in cells}
    for cell in interleave(cells, trials, head_start, done):
        first = neighbour(cells, cell)
        assert first is None or started[first.name] >= min(head_start, trials)
        started[cell.name] += 1
    assert all(n == max(trials, done.get(name, 0)) for name, n in started.items())


def test_without_a_head_start_it_is_round_robin():
    assert [cell.name for cell in interleave(grid([1, 3]), 2)] == ["0-0", "0-1", "0-2"] * 2
    assert [cell.name for cell in interleave(grid([1, 3]), 2, 2)] == ["0-0", "0-0", "0-1", "0-1", "0-2", "0-2"]
    assert [cell.name for cell in interleave(grid([1, 3]), 2, 1, {"0-1": 1})] == ["0-0", "0-2", "0-0", "0-1", "0-2"]


@given(LENGTHS, st.integers(1, 6), st.integers(0, 9), st.data())
def test_a_continued_sweep_keeps_the_order(lengths, trials, head_start, data):
    cells = grid(lengths)
    whole = [cell.name for cell in interleave(cells, trials, head_start)]
    n = data.draw(st.integers(0, len(whole)))
    done = {name: whole[:n].count(name) for name in whole[:n]}
    assert [cell.name for cell in interleave(cells, trials, head_start, done)] == whole[n:]


def test_names_and_coordinates(tmp_path):
    cells = load_sweep(write(tmp_path, {"cells": {"split.imbalance_factor": [10, 0.1e3], "recover.first_layer_weight": [2.5, 10]}})).cells
    assert [cell.name for cell in cells] == [
        "digits_lt-if10-first_layer_weight2.5",
        "digits_lt-if10-first_layer_weight10",
        "digits_lt-if100-first_layer_weight10",
        "digits_lt-if100-first_layer_weight2.5",
    ]
    assert dict(cells[-1].coordinates) == {"split.imbalance_factor": 100.0, "recover.first_layer_weight": 2.5}
    named = {"cells": {"select_crops.min_scale": [0.5, 1], "recover.min_scale": [None]}}
    named["cells"]["recover.min_scale"] = [0.5]
    assert load_sweep(write(tmp_path, named)).cells[0].name == "digits_lt-select_crops.min_scale0.5-recover.min_scale0.5"


def test_several_bases_are_a_coordinate_named_by_dataset_or_file(tmp_path):
    dump(tmp_path / "cifar.yaml", {"data": {"dataset": "cifar10_lt"}})
    dump(tmp_path / "other.yaml", {**BASE, "seed": 3})
    cells = load_sweep(write(tmp_path, {"base": ["base.yaml", "cifar.yaml"]})).cells
    assert [cell.base for cell in cells] == ["digits_lt"] * 6 + ["cifar10_lt"] * 6
    assert neighbour(cells, cells[6]).coordinates == cells[6].coordinates and neighbour(cells, cells[7]) == cells[6]
    cells = load_sweep(write(tmp_path, {"base": ["base.yaml", "other.yaml"], "cells": None})).cells
    assert [cell.name for cell in cells] == ["base", "other"] and cells[1].trial().seed == 3


def test_a_study_is_named_by_what_must_not_be_mixed_in_it(tmp_path):
    def study(changes=None, *overrides):
        return load_sweep(write(tmp_path, changes), overrides).cells[0].study_name

    plain = study()
    assert plain.startswith("digits_lt-if5-ipc1-")
    for budget in (
        "trials=99",
        "concurrency=5",
        "max_hours=2",
        "final_seeds=1",
        "output.root=/x",
        "set_in_finals.evaluate.seeds=9",
        "seed=4",
        "name=t",
    ):
        assert study(None, budget) == plain, budget
    assert study({"cells": {"split.imbalance_factor": [5], "distill.images_per_class": [1]}}) == plain
    for other in ("set_in_trials.evaluate.epochs=21", "search.recover.steps.high=99", "search.recover.steps.log=true", "objectives=[top1, seconds]"):
        assert study(None, other) != plain, other


def test_each_cell_has_a_sampler_seed_of_its_own(tmp_path):
    cells = load_sweep(write(tmp_path)).cells
    seeds = {cell.sampler_seed(0) for cell in cells}
    assert len(seeds) == len(cells) and all(0 <= seed < 2**32 for seed in seeds) and cells[0].sampler_seed(1) not in seeds


@pytest.mark.parametrize(
    ("kind", "grace", "factor", "rungs"),
    [("none", 1, 3, ()), ("median", 15, 3, (20, 40, 60, 120)), ("asha", 1, 3, (10, 40, 120)), ("asha", 15, 2, (20, 40, 120)), ("asha", 41, 4, (60,))],
)
def test_rungs_are_evaluation_epochs_after_the_grace(kind, grace, factor, rungs):
    config = PrunerConfig(kind=kind, grace=grace, reduction_factor=factor, evaluation_epochs=(10, 20, 40, 60, 120))
    assert config.rungs == rungs
