"""A loader resumes exactly from a state, also with another number of ranks or batch size, and from a pickle."""

import copy
import multiprocessing
import pickle
from multiprocessing.connection import Connection
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


def concatenated(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("order", list(OrderOption))
@pytest.mark.parametrize("used", [0, 1, 5, 12])
def test_resume_mid_epoch_yields_the_rest_of_the_epoch_then_the_next(
    order: OrderOption, used: int, numbers: BetonFile
) -> None:
    loader = make_loader(numbers, order=order)
    uninterrupted = copies(loader) + copies(loader)
    first = make_loader(numbers, order=order)
    copies(first, used) if used else None
    second = make_loader(numbers, order=order)
    second.load_state_dict(first.state_dict())
    resumed = copies(second) + copies(second)
    assert len(resumed) == len(uninterrupted) - used
    assert same(concatenated(resumed), concatenated(uninterrupted[used:]))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_with_another_number_of_ranks_keeps_the_global_batches(
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
    together = [concatenated(list(parts)) for parts in zip(*map(copies, ranks), strict=True)]
    assert len(together) == len(uninterrupted) - 5
    assert all(same(a, b) for a, b in zip(together, uninterrupted[5:], strict=True))


def test_resume_with_another_batch_size_uses_each_remaining_sample_once(numbers: BetonFile) -> None:
    first = make_loader(numbers)
    used = concatenated(copies(first, 5))
    second = make_loader(numbers, batch_size=7)
    second.load_state_dict(first.state_dict())
    everything = concatenated([used, concatenated(copies(second))])
    assert same(everything, concatenated(copies(make_loader(numbers))))


def test_state_dict_counts_yielded_batches_or_batches_used(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    assert loader.state_dict()["samples"] == 4 * GLOBAL_BATCH
    assert loader.state_dict(batches_used=3)["samples"] == 3 * GLOBAL_BATCH
    with pytest.raises(RebarError, match="batches_used: 5") as error:
        loader.state_dict(batches_used=5)
    assert error.value.code == "loader-invalid-argument"


def test_state_dict_after_load_state_dict_is_the_same_state(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    copies(loader, 5)
    state = loader.state_dict()
    second = make_loader(numbers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    copies(second, 2)
    assert second.state_dict()["samples"] == 7 * GLOBAL_BATCH


def test_state_dict_after_an_epoch_is_the_start_of_the_next(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (1, 0)
    copies(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (2, 0)
    loader.next_epoch = 9
    assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (9, 0)


def test_epoch_other_than_the_states_starts_at_its_beginning(numbers: BetonFile) -> None:
    loader = make_loader(numbers)
    copies(loader, 5)
    second = make_loader(numbers)
    second.load_state_dict(loader.state_dict())
    assert len(copies(second.epoch(0))) == len(second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "its seed is 3, this loader's is 4"),
        ({"order": OrderOption.SEQUENTIAL}, "its order is 'RANDOM', this loader's is 'SEQUENTIAL'"),
        ({"indices": range(50)}, "its num_samples is 103, this loader's is 50"),
        ({"indices": range(102, -1, -1)}, "its indices_digest is"),
    ],
)
def test_load_state_dict_rejects_a_state_of_another_order(
    changes: dict[str, Any], message: str, numbers: BetonFile
) -> None:
    state = make_loader(numbers).state_dict()
    with pytest.raises(RebarError, match=message) as error:
        make_loader(numbers, **changes).load_state_dict(state)
    assert error.value.code == "loader-state-mismatch"


def test_load_state_dict_rejects_an_invalid_state(numbers: BetonFile) -> None:
    with pytest.raises(RebarError) as error:
        make_loader(numbers).load_state_dict({"epoch": 3})
    assert error.value.code == "loader-state-invalid"


@pytest.mark.parametrize("order", [OrderOption.RANDOM, OrderOption.QUASI_RANDOM])
def test_resume_with_repeated_augmentation_keeps_the_global_batches(order: OrderOption, numbers: BetonFile) -> None:
    uninterrupted = copies(make_loader(numbers, order=order, copies=3))
    first = make_loader(numbers, order=order, copies=3)
    copies(first, 4)
    ranks = [make_loader(numbers, order=order, copies=3, ranks=2, rank=rank) for rank in range(2)]
    for loader in ranks:
        loader.load_state_dict(first.state_dict())
    together = [concatenated(list(parts)) for parts in zip(*map(copies, ranks), strict=True)]
    assert len(together) == len(uninterrupted) - 4
    assert all(same(a, b) for a, b in zip(together, uninterrupted[4:], strict=True))
    with pytest.raises(RebarError, match="its copies is 3"):
        make_loader(numbers, order=order).load_state_dict(first.state_dict())


# ------------------------------------------------------------------ pickling


def send_batches(loader: Loader, epochs: int, connection: Connection) -> None:
    """Send all batches of some epochs, as NumPy arrays."""
    connection.send([(b.images.numpy(), b.labels.numpy()) for _ in range(epochs) for b in copies(loader)])


def batches_in_a_process(method: str, loader: Loader, epochs: int) -> list[Batch]:
    context = multiprocessing.get_context(method)
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=send_batches, args=(loader, epochs, sending))
    process.start()
    sending.close()
    received = receiving.recv()
    process.join()
    return [Batch(*map(torch.from_numpy, batch)) for batch in received]


@pytest.mark.parametrize(
    "method", ["spawn", pytest.param("forkserver", marks=pytest.mark.nightly), pytest.param("fork")]
)
def test_loader_sent_to_a_process_after_an_epoch_yields_the_same_batches(method: str, numbers: BetonFile) -> None:
    loader = make_loader(numbers, os_cache=False)
    copies(loader)
    copies(loader, 3)  # an abandoned epoch
    found = batches_in_a_process(method, loader, epochs=2)
    expected = copies(loader) + copies(loader)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_loader_can_be_pickled_in_the_middle_of_an_epoch(numbers: BetonFile) -> None:
    loader = make_loader(numbers, order=OrderOption.QUASI_RANDOM)
    epoch = iter(loader)
    held = [next(epoch) for _ in range(3)]
    for other in (pickle.loads(pickle.dumps(loader)), copy.deepcopy(loader)):
        assert other.state_dict() == loader.state_dict()
        assert other.next_epoch == loader.next_epoch == 2
        resumed = make_loader(numbers, order=OrderOption.QUASI_RANDOM)
        resumed.load_state_dict(other.state_dict())
        whole = copies(make_loader(numbers, order=OrderOption.QUASI_RANDOM))
        assert same(concatenated(held + copies(resumed)), concatenated(whole))
