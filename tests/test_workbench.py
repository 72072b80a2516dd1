"""What a process keeps at hand: as much as it may, and the same answers whatever had to be let go."""

import pytest
import torch
from commands import TINY, quickstart_run
from hypothesis import given
from hypothesis import strategies as st

from ray_ltdd import workbench
from ray_ltdd.pipeline import train_experts
from ray_ltdd.workbench import Recent


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4))
def test_the_things_used_last_are_kept_and_each_of_the_others_is_let_go_once(names, n):
    made, gone = [], []
    recent = Recent(n, gone.append)
    for i, name in enumerate(names):
        last = list(dict.fromkeys(reversed(names[:i])))[:n]
        before = len(made)
        assert recent.get(name, lambda name=name: made.append(name) or name) == name
        assert len(made) == before + (name not in last)
    assert len(recent) == min(n, len(set(names)))
    recent.clear()
    assert sorted(gone) == sorted(made) and len(recent) == 0


@pytest.mark.slow
def test_a_process_that_meets_more_experts_than_it_keeps_answers_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(workbench, "N_EXPERTS", 1)
    monkeypatch.setattr(workbench, "N_FUNCTIONS", 2)
    with quickstart_run(tmp_path, *TINY, "experts.epochs=1", "experts.accuracy_floor=0", "teacher_seeds=2") as run:
        observer, *teachers = train_experts(run.config, run.bench, run.executor)
        image_NCHW = run.bench.bank("train").take(torch.arange(8))

        def answers():
            logits = [run.bench.teacher([teacher], 1)(image_NCHW) for teacher in teachers]
            _, layers = run.bench.observation(observer, "batch_norm", 1)(image_NCHW)
            return [*logits, *(tensor for layer in layers for tensor in layer)]

        first, again = answers(), answers()
        assert len(run.bench._experts) == 1 and len(run.bench._functions) == 2
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
