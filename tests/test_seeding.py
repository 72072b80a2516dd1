import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ltdd.seeding import derive_seed, generator, seed_dropout

NAME = st.text("abcdefgh-_", min_size=1, max_size=8)
INDEX = st.lists(st.integers(-5, 10**6) | NAME, max_size=3)


@settings(deadline=None)
@given(seed=st.integers(0, 10**9), stage=NAME, index=INDEX)
def test_a_seed_is_63_bits_and_depends_on_the_arguments_alone(seed, stage, index):
    value = derive_seed(seed, stage, *index)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, stage, *index)
    torch.Generator().manual_seed(value)


def test_every_argument_counts():
    calls = [(0, "views"), (1, "views"), (0, "recover"), (0, "views", 0), (0, "views", 1), (0, "views", 0, 1), (0, "views", 1, 0), (0, "views", "a")]
    calls += [(1, "views", 23), (12, "views", 3), (0, "views", 123), (0, "views", 12, 3), (0, "views", -12)]
    assert len({derive_seed(*call) for call in calls}) == len(calls)


def test_seeds_of_neighbours_have_nothing_in_common():
    values = [derive_seed(0, "views", epoch) for epoch in range(2000)]
    assert len(set(values)) == 2000
    for bit in range(63):
        assert 0.45 < sum(value >> bit & 1 for value in values) / 2000 < 0.55


def test_recorded_values_hold():
    """Stored labels are replayed from their seed, so the derivation may never change."""
    assert derive_seed(0, "views", 3) == 1419275200204932320
    assert derive_seed(7, "select_crops", 9) == 8306736372147100285


def test_generators_of_equal_arguments_draw_alike_and_leave_the_global_one_alone():
    before = torch.get_rng_state()
    first, again, other = (torch.rand(4, generator=generator("cpu", 3, "views", epoch)) for epoch in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.5))])
def test_dropout_draws_the_same_mask_at_the_same_step(dropout):
    layer = dropout if isinstance(dropout, torch.nn.Dropout) else dropout[1]

    def mask(seed, step):
        seed_dropout(dropout, seed, step)
        return layer(torch.ones(200))

    with torch.random.fork_rng(devices=[]):
        first = mask(0, 5)
        torch.rand(17)
        assert torch.equal(first, mask(0, 5))
        assert not torch.equal(first, mask(0, 6)) and not torch.equal(first, mask(1, 5))


def test_a_network_without_dropout_leaves_the_global_generator_alone():
    network = torch.nn.Linear(2, 2)
    before = torch.get_rng_state()
    seed_dropout(network, 0, 1)
    assert torch.equal(torch.get_rng_state(), before)
