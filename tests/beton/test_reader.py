"""BetonFile.open: files of FFCV are read, damaged files are refused."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonError, BetonFile
from rebar.beton.format import ALLOCATION, FIELD_DESCRIPTOR, HEADER
from rebar.beton.pages import SAMPLE
from rebar.beton.sidecar import sidecar_path


@pytest.fixture
def damaged(beton: BetonFile, tmp_path: Path) -> "Damaged":
    return Damaged(tmp_path / "damaged.beton", bytearray(beton.path.read_bytes()))


class Damaged:
    """A copy of an intact file, without sidecar, to be damaged and then opened."""

    def __init__(self, path: Path, content: bytearray) -> None:
        self.path, self.content = path, content
        self.header = np.frombuffer(content, HEADER, 1)
        self.descriptors = np.frombuffer(content, FIELD_DESCRIPTOR, 2, HEADER.itemsize)
        start = HEADER.itemsize + self.descriptors.nbytes
        self.samples = np.frombuffer(content, SAMPLE, int(self.header["num_samples"][0]), start)
        self.allocations = np.frombuffer(content, ALLOCATION, -1, int(self.header["alloc_table_ptr"][0]))

    def open(self, size: int | None = None) -> BetonFile:
        self.path.write_bytes(self.content[:size])
        return BetonFile.open(self.path)


def test_open_reads_what_was_written(beton: BetonFile) -> None:
    assert len(beton) == beton.num_samples == 24
    assert beton.field_names == ("image", "label")
    assert beton.class_names == ("n00", "n01", "n02")
    assert beton.num_classes == 3
    assert np.array_equal(np.bincount(beton.labels), [8, 8, 8])
    assert beton.labels.dtype == np.int64
    assert beton.sizes.dtype == beton.offsets.dtype == np.uint64
    assert max(beton.heights.max(), beton.widths.max()) == 200
    for index in range(24):
        data = beton.image_bytes(index)
        assert data[:2].tobytes() == b"\xff\xd8"
        assert data[-2:].tobytes() == b"\xff\xd9"
    with pytest.raises(ValueError, match="read-only"):
        beton.labels[0] = 1


def test_pickle_contains_the_path_only(beton: BetonFile) -> None:
    content = pickle.dumps(beton)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).labels, beton.labels)


def test_num_classes_without_a_sidecar(damaged: Damaged) -> None:
    file = damaged.open()
    assert file.class_names is None
    assert file.num_classes == 3


def test_open_with_unordered_allocation_table(damaged: Damaged, beton: BetonFile) -> None:
    damaged.allocations[:] = np.random.default_rng(0).permutation(damaged.allocations)
    assert np.array_equal(damaged.open().sizes, beton.sizes)


def test_open_finds_fields_by_type_and_name(damaged: Damaged) -> None:
    damaged.descriptors["name"][0, :7] = np.frombuffer(b"picture", np.uint8)
    assert damaged.open().field_names == ("picture", "label")


def test_open_file_of_stock_ffcv(tmp_path: Path) -> None:
    writer = pytest.importorskip("ffcv.writer")
    from ffcv.fields import BytesField, FloatField, IntField, RGBImageField

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + n % 7, 30 + n % 5, 3), np.uint8) for n in range(60)]

    class Samples:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[float, np.ndarray, int, np.ndarray, int]:
            return index / 2, np.frombuffer(b"text" * (index % 3), np.uint8), -7, images[index], index % 10

    fields = {
        "weight": FloatField(),
        "text": BytesField(),  # every third is empty and has the same pointer as the image
        "number": IntField(),
        "image": RGBImageField(write_mode="raw"),
        "label": IntField(),
    }
    path = tmp_path / "stock.beton"
    writer.DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Samples(), chunksize=7)

    file = BetonFile.open(path)
    assert file.field_names == tuple(fields)
    assert np.array_equal(file.labels, np.arange(60) % 10)
    assert file.num_classes == 10
    for index, image in enumerate(images):
        assert np.array_equal(file.image_bytes(index), image.reshape(-1))


def open_error(path: Path) -> BetonError:
    with pytest.raises(BetonError) as raised:
        BetonFile.open(path)
    assert path.name in str(raised.value)
    return raised.value


class TestOpenRefuses:
    def test_open_refuses_a_missing_file(self, tmp_path: Path) -> None:
        assert open_error(tmp_path / "absent.beton").code == "beton-not-found"

    def test_open_refuses_a_folder(self, tmp_path: Path) -> None:
        assert open_error(tmp_path).code == "beton-unreadable"

    def test_open_refuses_a_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        assert open_error(tmp_path / "pipe").code == "beton-unreadable"

    def test_open_refuses_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.beton").touch()
        assert open_error(tmp_path / "a.beton").code == "beton-truncated"

    def test_open_refuses_another_file_format(self, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        assert open_error(path).code == "beton-version-unsupported"

    @pytest.mark.parametrize("share", [0.0000005, 0.0001, 0.3, 0.9, 0.99999, 0.9999999])
    def test_open_refuses_a_truncated_file(self, damaged: Damaged, share: float) -> None:
        size = int(share * len(damaged.content))
        with pytest.raises(BetonError, match=f"has {size:,}" if size else "is empty") as raised:
            damaged.open(size)
        assert raised.value.code == "beton-truncated"

    @pytest.mark.parametrize(
        ("field", "value", "code"),
        [
            ("version", 1, "beton-version-unsupported"),
            ("num_fields", 0, "beton-damaged"),
            ("num_fields", 65535, "beton-truncated"),
            ("num_samples", 0, "beton-empty"),
            ("num_samples", 2**64 - 1, "beton-truncated"),
            ("page_size", 0, "beton-damaged"),
            ("page_size", 12345, "beton-damaged"),
            ("alloc_table_ptr", 0, "beton-unfinished"),
            ("alloc_table_ptr", 100, "beton-damaged"),
            ("alloc_table_ptr", 2**64 - 1, "beton-truncated"),
        ],
    )
    def test_open_refuses_a_damaged_header(self, damaged: Damaged, field: str, value: int, code: str) -> None:
        damaged.header[field] = value
        with pytest.raises(BetonError) as raised:
            damaged.open()
        assert raised.value.code == code

    @pytest.mark.parametrize(
        ("number", "type_id", "message"),
        [
            (0, 3, "no image field"),
            (1, 0, "no label field"),
            (0, 255, "'image' has a custom type"),
            (1, 99, "custom type"),
        ],
    )
    def test_open_refuses_unsupported_fields(self, damaged: Damaged, number: int, type_id: int, message: str) -> None:
        damaged.descriptors["type_id"][number] = type_id
        with pytest.raises(BetonError, match=message) as raised:
            damaged.open()
        assert raised.value.code == "beton-field-unsupported"

    @pytest.mark.parametrize(
        ("entry", "value"), [("data_ptr", 2**64 - 1), ("data_ptr", 8388609), ("mode", 2), ("mode", 1), ("width", 0)]
    )
    def test_open_refuses_damaged_image_entries(self, damaged: Damaged, entry: str, value: int) -> None:
        damaged.samples["f0"][entry][5] = value
        with pytest.raises(BetonError, match="sample 5") as raised:
            damaged.open()
        assert raised.value.code == "beton-damaged"

    @pytest.mark.parametrize("size", [2**64 - 1, 2**63, 10**9, 0])
    def test_open_refuses_damaged_image_sizes(self, damaged: Damaged, size: int) -> None:
        damaged.allocations["size"][7] = size
        with pytest.raises(BetonError, match="sample 7") as raised:
            damaged.open()
        assert raised.value.code == "beton-damaged"


@pytest.mark.parametrize("label", [-1, 10**9])
def test_num_classes_refuses_implausible_labels(damaged: Damaged, label: int) -> None:
    damaged.samples["f1"][3] = label
    file = damaged.open()
    with pytest.raises(BetonError, match=f"label {label:,}") as raised:
        _ = file.num_classes
    assert raised.value.code == "beton-label-invalid"


def test_num_classes_refuses_labels_beyond_the_sidecars_classes(damaged: Damaged, beton: BetonFile) -> None:
    damaged.samples["f1"][3] = 3
    sidecar = json.loads(sidecar_path(beton.path).read_text())
    del sidecar["checksums"]  # they would be compared first
    sidecar_path(damaged.path).write_text(json.dumps(sidecar))
    file = damaged.open()
    with pytest.raises(BetonError, match="label 3") as raised:
        _ = file.num_classes
    assert raised.value.code == "beton-label-invalid"


def test_random_damage_is_refused_or_harmless(damaged: Damaged) -> None:
    """Opens 300 files with random bytes at random places of their tables."""
    rng = np.random.default_rng(0)
    content = np.frombuffer(damaged.content, np.uint8)
    table = int(damaged.header["alloc_table_ptr"][0])
    named = HEADER.itemsize + FIELD_DESCRIPTOR.itemsize
    places = np.r_[0 : HEADER.itemsize + 17, named : named + 17, named * 2 - 24 : 3000, table : len(content)]
    damaged.path.write_bytes(content)
    num_opened, messages = 0, []
    with damaged.path.open("r+b", buffering=0) as file:
        for _ in range(300):
            chosen = rng.choice(places, rng.integers(1, 4))
            for place in chosen:
                file.seek(place)
                file.write(rng.integers(0, 256, 1, np.uint8).tobytes())
            try:
                opened = BetonFile.open(damaged.path)
                assert sum(opened.image_bytes(index).nbytes for index in range(len(opened))) > 0
                num_opened += 1
            except BetonError as error:
                messages.append(str(error))
            for place in chosen:
                file.seek(place)
                file.write(content[place].tobytes())
    assert min(num_opened, len(messages)) > 20
    assert all(str(damaged.path) in message for message in messages)
