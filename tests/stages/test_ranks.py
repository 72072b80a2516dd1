"""Several real processes train one expert: the same weights as one alone, the same bytes after a death, no process left waiting.

Legend: N images, B batch, K classes.
"""

import os
import uuid
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from expert_views import draw_views
from stages.test_experts import BACKEND, BANK, COUNT_K, TINY, fresh_expert, slot_at

from ray_ltdd.artifacts import ArtifactStore, Key
from ray_ltdd.errors import InputError
from ray_ltdd.executor import InlineExecutor, Task
from ray_ltdd.seeding import generator
from ray_ltdd.stages.experts import ExpertTraining, draw_epoch, train_expert
from ray_ltdd.stages.ranks import SOLO, Ranks

pytestmark = pytest.mark.slow

INSTANCE = ExpertTraining(**TINY | {"epochs": 2}, logit_adjustment=0.3, gradient_clip=0.5, ema_decay=0.9)
PLAIN = ExpertTraining(**TINY | {"epochs": 1}, debias=False)
BATCH = ExpertTraining(**TINY | {"epochs": 2, "batch_size": 30}, ema_decay=0.9)


def together(folder, count, scenario):
    """Run `scenario(ranks, folder)` in `count` processes and return what each returned."""
    folder.mkdir(exist_ok=True)
    multiprocessing.spawn(_process, (count, folder, uuid.uuid4().hex, scenario), count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _process(rank, count, folder, meeting, scenario):
    torch.set_num_threads(1)
    # a process left waiting fails within the minute
    dist.init_process_group("gloo", f"file://{folder}/{meeting}", timedelta(seconds=60), world_size=count, rank=rank)
    torch.save(scenario(Ranks(rank, count), folder), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def train(config, slot, expert, advance=lambda _: None, ranks=SOLO):
    return train_expert(config, expert, BANK, COUNT_K, BACKEND, 7, slot, advance, ranks)


def trainings_and_refusals(ranks, folder):
    done = []
    instance = train(INSTANCE, slot_at(folder / "instance"), fresh_expert("instance"), done.append, ranks)
    plain = train(PLAIN, slot_at(folder / "plain"), fresh_expert("instance"), ranks=ranks)
    batch = train(BATCH, slot_at(folder / "batch"), fresh_expert("batch"), ranks=ranks)
    return {"instance": instance.tensors, "record": instance.record, "plain": plain.tensors, "batch": batch.tensors, "done": done} | refusals(
        ranks, folder
    )


def refusals(ranks, folder):
    texts = []
    slot = slot_at(folder / "exploding")
    try:
        train(ExpertTraining(**TINY | {"learning_rate": 1e20}), slot, fresh_expert(), ranks=ranks)
    except InputError as error:
        texts.append(str(error))
    votes = [ranks.all_true(torch.tensor(flag)) for flag in (True, ranks.is_first, not ranks.is_first, False)]
    ranks.barrier(BACKEND.device, 3)
    try:
        ranks.barrier(BACKEND.device, ranks.rank)
    except RuntimeError as error:
        texts.append(str(error))
    return {"texts": texts, "votes": votes, "saved": slot.load() is not None}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return together(tmp_path_factory.mktemp("pair"), 2, trainings_and_refusals)


def test_two_processes_train_as_one_does(pair, tmp_path):
    """The mean of two means of half a batch is the mean of the batch; float32 sums in another order are what is left, after 18 steps."""
    for name, config in (("instance", INSTANCE), ("plain", PLAIN)):
        alone = train(config, slot_at(tmp_path / name), fresh_expert("instance")).tensors
        start = fresh_expert("instance").state_dict()
        for key, tensor in alone.items():
            moved = float((tensor - start[key]).abs().max())
            difference = float((pair[0][name][key] - tensor).abs().max())
            assert difference <= 1e-5 + 1e-3 * moved, f"{name} {key}: differs by {difference}, training moved it by {moved}"


def test_heads_that_are_not_trained_stay_as_they_were(pair):
    start = fresh_expert("instance").state_dict()
    unchanged = {name.split(".")[0] for name, tensor in pair[0]["plain"].items() if torch.equal(tensor, start[name])}
    assert unchanged == {"plain_head", "projector", "predictor", "mean_C", "std_C"}


def test_all_processes_return_the_same_bytes(pair):
    """Running statistics of batch normalisation too: the first process's."""
    first, second = pair
    assert first["record"] == second["record"]
    for name in ("instance", "plain", "batch"):
        for key, tensor in first[name].items():
            assert torch.equal(tensor, second[name][key]), f"{name} {key}"


def test_the_first_process_alone_reports_and_counts_whole_batches(pair):
    first, second = pair
    assert sum(first["done"]) == 2 * 32 * (len(BANK) // 32) * 2 and second["done"] == []


def test_a_share_holds_whole_pairs_of_the_same_draws():
    config = ExpertTraining(batch_size=12)
    draws = draw_epoch(config, BANK.label_N, COUNT_K, 1, 0, 0)
    whole = draw_views(config, BANK, draws, 0, generator("cpu", 0, "test"))
    shares = [draw_views(config, BANK, draws, 0, generator("cpu", 0, "test"), Ranks(rank, 3)) for rank in range(3)]
    for part, of_ranks in zip(whole, zip(*shares, strict=True), strict=True):
        mixed_up, cut_mixed = zip(*(share.chunk(2) for share in of_ranks), strict=True)
        assert torch.equal(torch.cat([*mixed_up, *cut_mixed]), part)


@pytest.mark.parametrize(("n_rows", "fitting"), [(64, 63), (2, 3)])
def test_a_batch_that_cannot_be_shared_is_one_sentence(n_rows, fitting):
    Ranks(2, 3).require_equal_shares(66)
    with pytest.raises(
        InputError, match=f"a batch of {n_rows} .*experts.batch_size.* cluster.expert_workers=3 .* set experts.batch_size to {fitting} or"
    ):
        Ranks(1, 3).require_equal_shares(n_rows)


def test_training_refuses_an_unequal_share_before_any_process_waits(tmp_path):
    with pytest.raises(InputError, match=r"cluster\.expert_workers=3"):
        train(INSTANCE, slot_at(tmp_path), fresh_expert(), ranks=Ranks(1, 3))


def test_only_the_first_process_draws_dropout_as_a_single_one_does():
    assert SOLO.seed(5) == Ranks(0, 3).seed(5) == 5 and len({Ranks(rank, 3).seed(5) for rank in range(3)}) == 3


def test_a_failure_of_the_training_ends_all_processes(pair):
    first, second = pair
    assert first["texts"] == second["texts"] and first["votes"] == second["votes"]
    assert first["votes"] == [True, False, False, False] and not first["saved"]
    assert "NaN or infinite in epoch 1 of 3" in first["texts"][0] and "0 and 1 epochs done" in first["texts"][1]


def whole_or_continued(ranks, folder):
    return train(BATCH, slot_at(folder), fresh_expert("batch", seed=0), ranks=ranks).tensors


def dying(ranks, folder):
    calls = []

    def advance(_):
        calls.append(1)
        if len(calls) == 1 + len(BANK) // 30 + 3:
            os._exit(1)

    return train(BATCH, slot_at(folder), fresh_expert("batch"), advance, ranks).tensors


@pytest.mark.extended
def test_three_processes_continue_with_the_same_bytes_after_a_death(tmp_path):
    """Three, because the order of a sum shows then: with DistributedDataParallel's own settings some weights differed by 1e-8."""
    whole = together(tmp_path / "whole", 3, whole_or_continued)
    with pytest.raises(multiprocessing.ProcessExitedException):
        together(tmp_path / "parts", 3, dying)
    assert int(slot_at(tmp_path / "parts").load()["n_done"]) == 1
    parts = together(tmp_path / "parts", 3, whole_or_continued)
    for rank in range(3):
        for name, tensor in whole[0].items():
            assert torch.equal(tensor, parts[rank][name]) and torch.equal(tensor, whole[rank][name]), f"{rank} {name}"


def test_a_task_of_several_processes_needs_ray(tmp_path):
    task = Task(Key("experts", 1, {}, {}, 0), train, {}, 1, "expert ConvNet", 2)
    with pytest.raises(InputError, match=r"expert ConvNet .* cluster.expert_workers=2 .* needs cluster.executor=ray"):
        InlineExecutor(ArtifactStore(tmp_path), None).compute("Experts", [task])
