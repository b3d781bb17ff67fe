"""A loader goes on exactly where it stopped, also with other processes."""

from typing import Any

import pytest
import torch

from rebar.beton import BetonFile
from rebar.errors import RebarError
from rebar.loading import Batch, Loader, OrderOption, RandomResizedCrop

SAMPLES, GLOBAL_BATCH = 103, 8


def make_loader(beton: BetonFile, *, ranks: int = 1, rank: int = 0, **changes: Any) -> Loader:
    chosen = {"order": OrderOption.RANDOM, "drop_last": False, "seed": 3, "window_pages": 1, **changes}
    loader = Loader(
        beton.path,
        chosen.pop("batch_size", GLOBAL_BATCH // ranks),
        2,
        cropper=RandomResizedCrop(),
        resolution=8,
        rank=rank,
        world_size=ranks,
        **chosen,
    )
    loader.next_epoch = 1
    return loader


def copies(batches: Any, most: int = 1000) -> list[Batch]:
    taken = []
    for batch in batches:
        taken.append(Batch(batch.images.clone(), batch.labels.clone()))
        if len(taken) == most:
            break
    return taken


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("order", list(OrderOption))
@pytest.mark.parametrize("used", [0, 1, 5, 12])
def test_the_rest_of_the_epoch_comes_then_the_next(order: OrderOption, used: int, numbers: BetonFile) -> None:
    whole = make_loader(numbers, order=order)
    uninterrupted = copies(whole) + copies(whole)
    first = make_loader(numbers, order=order)
    copies(first, used) if used else None
    again = make_loader(numbers, order=order)
    again.load_state_dict(first.state_dict())
    resumed = copies(again) + copies(again)
    assert len(resumed) == len(uninterrupted) - used
    assert same(joined(resumed), joined(uninterrupted[used:]))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_another_number_of_ranks_goes_on_with_the_same_global_batches(
    before: int, after: int, drop_last: bool, numbers: BetonFile
) -> None:
    uninterrupted = copies(make_loader(numbers, drop_last=drop_last))
    states = []
    for rank in range(before):
        loader = make_loader(numbers, ranks=before, rank=rank, drop_last=drop_last)
        copies(loader, 5)
        states.append(loader.state_dict())
    assert all(state == states[0] for state in states)
    ranks = [make_loader(numbers, ranks=after, rank=rank, drop_last=drop_last) for rank in range(after)]
    for loader in ranks:
        loader.load_state_dict(states[0])
    together = [joined(list(parts)) for parts in zip(*map(copies, ranks), strict=True)]
    assert len(together) == len(uninterrupted) - 5
    assert all(same(a, b) for a, b in zip(together, uninterrupted[5:], strict=True))


def test_another_global_batch_leaves_no_sample_out_and_takes_none_twice(numbers: BetonFile) -> None:
    first = make_loader(numbers)
    used = joined(copies(first, 5))
    again = make_loader(numbers, batch_size=7)
    again.load_state_dict(first.state_dict())
    everything = joined([used, joined(copies(again))])
    assert same(everything, joined(copies(make_loader(numbers))))


def test_batches_on_their_way_do_not_count_as_used(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    assert loader.state_dict()["samples"] == 4 * GLOBAL_BATCH
    assert loader.state_dict(batches_used=3)["samples"] == 3 * GLOBAL_BATCH
    with pytest.raises(RebarError, match="batches_used is 5, but this pass has given out 4"):
        loader.state_dict(batches_used=5)


def test_a_state_of_a_state_is_the_same(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    copies(loader, 5)
    state = loader.state_dict()
    again = make_loader(numbers)
    again.load_state_dict(state)
    assert again.state_dict() == state
    copies(again, 2)
    assert again.state_dict()["samples"] == 7 * GLOBAL_BATCH


def test_a_complete_epoch_is_the_next_ones_beginning(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (1, 0)
    copies(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (2, 0)
    loader.next_epoch = 9
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (9, 0)


def test_another_epoch_than_the_states_begins_at_its_start(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    copies(loader, 5)
    again = make_loader(numbers)
    again.load_state_dict(loader.state_dict())
    assert len(copies(again.epoch(0))) == len(again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "its seed is 3, this loader's 4"),
        ({"order": OrderOption.SEQUENTIAL}, "its order is 'RANDOM', this loader's 'SEQUENTIAL'"),
        ({"indices": range(50)}, "its num_samples is 103, this loader's 50"),
        ({"indices": range(102, -1, -1)}, "its indices_digest is"),
    ],
)
def test_a_state_of_another_order_is_refused(changes: dict[str, Any], message: str, numbers: BetonFile) -> None:
    state = make_loader(numbers).state_dict()
    with pytest.raises(RebarError, match=message):
        make_loader(numbers, **changes).load_state_dict(state)


def test_what_is_no_state_is_refused(numbers: BetonFile) -> None:
    with pytest.raises(RebarError, match="is none that this version"):
        make_loader(numbers).load_state_dict({"epoch": 3})


@pytest.mark.parametrize("order", [OrderOption.RANDOM, OrderOption.QUASI_RANDOM])
def test_several_crops_of_a_image_go_on_too(order: OrderOption, numbers: BetonFile) -> None:
    whole = copies(make_loader(numbers, order=order, copies=3))
    first = make_loader(numbers, order=order, copies=3)
    copies(first, 4)
    ranks = [make_loader(numbers, order=order, copies=3, ranks=2, rank=rank) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    together = [joined(list(parts)) for parts in zip(*map(copies, ranks), strict=True)]
    assert len(together) == len(whole) - 4
    assert all(same(a, b) for a, b in zip(together, whole[4:], strict=True))
    with pytest.raises(RebarError, match="its copies is 3"):
        make_loader(numbers, order=order).load_state_dict(first.state_dict())
