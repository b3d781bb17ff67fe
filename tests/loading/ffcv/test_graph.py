"""FfcvBackend runs pipelines that only FFCV supports, reproducibly, and raises their errors."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ffcv")
from ffcv.fields import FloatField, IntField, NDArrayField
from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import Cutout, ModuleWrapper, RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter

from rebar.beton import BetonError, BetonFile
from rebar.errors import RebarError
from rebar.loading import Loader, OrderOption
from rebar.loading.ffcv.graph import PipelineError
from rebar.loading.ffcv.pipelines import field_types, recognize
from tests.loading.ffcv.stock_ffcv import Loader as FfcvLoader


def random_pipelines() -> dict[str, Any]:
    image = [
        RandomResizedCropRGBImageDecoder((16, 16)),
        Cutout(4),
        RandomTranslate(2),
        RandomHorizontalFlip(),
        ToTensor(),
        ToTorchImage(channels_last=False),
    ]
    return {"image": image}


def cutout_pipelines() -> dict[str, Any]:
    """FFCV compiles them faster than :func:`random_pipelines`."""
    return {"image": [CenterCropRGBImageDecoder((16, 16), 1), Cutout(1), ToTensor()]}


def make_loader(beton: BetonFile, pipelines: dict[str, Any], **changes: Any) -> Loader:
    chosen = {"num_workers": 2, "order": OrderOption.RANDOM, "drop_last": False, **changes}
    assert recognize(pipelines, field_types(beton.path)) is None
    return Loader(beton.path, 5, pipelines=pipelines, **chosen)


def test_ffcv_batches_do_not_depend_on_threads_and_are_not_overwritten(textures: BetonFile) -> None:
    loader = make_loader(textures, random_pipelines(), num_workers=1)
    for epoch in range(2):
        loader.num_workers, loader.next_epoch = 1, epoch
        held = list(loader)
        loader.num_workers, loader.next_epoch = 3, epoch
        copies = [(images.clone(), labels.clone()) for images, labels in loader]
        assert [len(labels) for _, labels in held] == [5, 5, 2]
        for (a, b), (c, d) in zip(held, copies, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_ffcv_batches_without_randomness_equal_stock_ffcv(noise: BetonFile) -> None:
    def pipelines() -> dict[str, Any]:
        return {"image": [CenterCropRGBImageDecoder((16, 16), 0.9), Cutout(0), ToTensor()]}

    theirs = FfcvLoader(str(noise.path), 5, 1, pipelines=pipelines(), drop_last=False)
    ours = make_loader(noise, pipelines(), order=OrderOption.SEQUENTIAL)
    for batch, expected in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_ffcv_backend_reads_fields_of_any_type(tmp_path: Path) -> None:
    path = tmp_path / "numbers.beton"
    fields = {"x": NDArrayField(np.dtype("f4"), (3,)), "y": FloatField(), "n": IntField()}
    writer = DatasetWriter(str(path), fields, num_workers=1)
    writer.from_indexed_dataset([(np.full(3, i, "f4"), i / 2, i) for i in range(20)])
    loader = Loader(path, 4, 2, False, OrderOption.QUASI_RANDOM, rank=1, world_size=2)
    batches = list(loader)
    assert [len(n) for *_, n in batches] == [4, 4]
    for x, y, n in batches:
        assert torch.equal(x, n.float().expand(-1, 3))
        assert torch.equal(y, n / 2)
    with pytest.raises(RebarError) as error:
        _ = loader.beton
    assert error.value.code == "ffcv-unsupported"


def test_loader_of_ffcvs_graph_can_be_pickled_after_an_epoch(textures: BetonFile) -> None:
    loader = make_loader(textures, random_pipelines(), order=OrderOption.RANDOM)
    list(loader)
    other = pickle.loads(pickle.dumps(loader))
    for found, expected in zip(other, loader, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Fails(torch.nn.Module):
    """Raises an exception on the second batch."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            raise OSError("disk error")
        return images


def test_exception_in_an_operation_is_raised_on_its_batch(textures: BetonFile) -> None:
    pipeline = [CenterCropRGBImageDecoder((16, 16), 1), Cutout(1), ToTensor(), ModuleWrapper(Fails())]
    loader = make_loader(textures, {"image": pipeline}, num_workers=1, order=OrderOption.SEQUENTIAL)
    batches = iter(loader)
    next(batches)
    with pytest.raises(PipelineError, match=re.escape("samples 5, 6, 7, 8, 9: OSError: disk error")) as failed:
        next(batches)
    assert isinstance(failed.value.__cause__, OSError)
    assert failed.value.code == "ffcv-pipeline-failed"
    with pytest.raises(StopIteration):
        next(batches)


def test_ffcv_buffers_are_reused_between_epochs(textures: BetonFile) -> None:
    loader = make_loader(textures, cutout_pipelines())
    addresses = [{images.data_ptr() for images, _ in loader} for _ in range(6)]
    assert len(set.union(*addresses)) <= loader.batches_ahead + loader.num_workers + 3


def test_ffcv_backend_preserves_the_thread_counts_of_torch_and_ffcv(textures: BetonFile) -> None:
    torch_threads, compiler_threads = torch.get_num_threads(), Compiler.num_threads
    Compiler.num_threads = 3
    try:
        list(make_loader(textures, cutout_pipelines(), num_workers=2))
        assert Compiler.num_threads == 3
        assert torch.get_num_threads() == torch_threads
    finally:
        Compiler.num_threads = compiler_threads


def test_options_of_the_native_backend_are_rejected(textures: BetonFile) -> None:
    with pytest.raises(RebarError, match="on_error") as error:
        make_loader(textures, random_pipelines(), on_error="replace")
    assert error.value.code == "ffcv-unsupported"
    with pytest.raises(RebarError, match="output_size") as error:
        next(make_loader(textures, random_pipelines()).epoch(0, 32))
    assert error.value.code == "ffcv-unsupported"
    with pytest.raises(RebarError, match="2 files") as error:
        Loader([textures.path, textures.path], 5, pipelines=random_pipelines())
    assert error.value.code == "ffcv-unsupported"


def test_truncated_file_is_rejected(textures: BetonFile, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.beton"
    truncated.write_bytes(textures.path.read_bytes()[:-100])
    with pytest.raises(BetonError):
        Loader(truncated, 5, pipelines=random_pipelines())
