"""Files that FFCV wrote are read; files that are wrong in any way give one clear error."""

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
    """A copy of a good file, without sidecar, to be damaged and then opened."""

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


def test_what_was_written_is_read(beton: BetonFile) -> None:
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


def test_pickling_sends_the_path_and_not_the_images(beton: BetonFile) -> None:
    content = pickle.dumps(beton)
    assert len(content) < 1000
    assert np.array_equal(pickle.loads(content).labels, beton.labels)


def test_without_a_sidecar_classes_are_counted(damaged: Damaged) -> None:
    file = damaged.open()
    assert file.class_names is None
    assert file.num_classes == 3


def test_an_unordered_allocation_table(damaged: Damaged, beton: BetonFile) -> None:
    damaged.allocations[:] = np.random.default_rng(0).permutation(damaged.allocations)
    assert np.array_equal(damaged.open().sizes, beton.sizes)


def test_fields_are_found_by_type_and_name(damaged: Damaged) -> None:
    damaged.descriptors["name"][0, :7] = np.frombuffer(b"image", np.uint8)
    assert damaged.open().field_names == ("image", "label")


def test_a_file_that_ffcv_wrote(tmp_path: Path) -> None:
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
        "text": BytesField(),  # every third one empty: its pointer is also the image's
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


class TestWhatIsNoBeton:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(BetonError, match=r"absent\.beton: no such file"):
            BetonFile.open(tmp_path / "absent.beton")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(BetonError, match="is a folder"):
            BetonFile.open(tmp_path)

    def test_pipe(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BetonError, match="no regular file"):
            BetonFile.open(tmp_path / "pipe")

    def test_empty(self, damaged: Damaged) -> None:
        with pytest.raises(BetonError, match="is empty"):
            damaged.open(0)

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        with pytest.raises(BetonError, match=r"no \.beton file of version 2"):
            BetonFile.open(path)


@pytest.mark.parametrize("share", [0.0000005, 0.0001, 0.3, 0.9, 0.99999, 0.9999999])
def test_a_file_cut_short_says_how_much_is_missing(damaged: Damaged, share: float) -> None:
    size = int(share * len(damaged.content))
    with pytest.raises(BetonError, match=rf"cut short.*has {size:,}; copy it again"):
        damaged.open(size)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 1, "version 2"),
        ("num_fields", 0, "no fields"),
        ("num_fields", 65535, "cut short"),
        ("num_samples", 0, "no samples"),
        ("num_samples", 2**64 - 1, "cut short"),
        ("page_size", 0, "page size"),
        ("page_size", 12345, "page size"),
        ("alloc_table_ptr", 0, "unfinished"),
        ("alloc_table_ptr", 100, "among its samples"),
        ("alloc_table_ptr", 2**64 - 1, "cut short"),
    ],
)
def test_headers_that_cannot_be(damaged: Damaged, field: str, value: int, message: str) -> None:
    damaged.header[field] = value
    with pytest.raises(BetonError, match=message):
        damaged.open()


@pytest.mark.parametrize(
    ("number", "type_id", "message"),
    [
        (0, 3, "no image field"),
        (1, 0, "no label field"),
        (0, 255, "'image' is of a custom type"),
        (1, 99, "custom type"),
    ],
)
def test_fields_that_do_not_serve(damaged: Damaged, number: int, type_id: int, message: str) -> None:
    damaged.descriptors["type_id"][number] = type_id
    with pytest.raises(BetonError, match=message):
        damaged.open()


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("data_ptr", 2**64 - 1, "not in its allocation table"),
        ("data_ptr", 8388609, "not in its allocation table"),
        ("mode", 2, "neither stored as JPEG nor raw"),
        ("mode", 1, "not as many as its pixels"),
        ("width", 0, "no pixels"),
    ],
)
def test_images_that_cannot_be(damaged: Damaged, entry: str, value: int, message: str) -> None:
    damaged.samples["f0"][entry][5] = value
    with pytest.raises(BetonError, match=rf"sample 5 .*{message}"):
        damaged.open()


@pytest.mark.parametrize("size", [2**64 - 1, 2**63, 10**9, 0])
def test_sizes_that_cannot_be(damaged: Damaged, size: int) -> None:
    damaged.allocations["size"][7] = size
    with pytest.raises(BetonError, match="sample 7 cannot be right"):
        damaged.open()


def test_labels_that_are_no_classes(damaged: Damaged) -> None:
    damaged.samples["f1"][3] = -1
    file = damaged.open()
    with pytest.raises(BetonError, match="label -1 is negative"):
        _ = file.num_classes


def test_labels_beyond_the_sidecars_classes(damaged: Damaged, beton: BetonFile) -> None:
    damaged.samples["f1"][3] = 3
    sidecar = json.loads(sidecar_path(beton.path).read_text())
    del sidecar["checksums"]  # else they would tell
    sidecar_path(damaged.path).write_text(json.dumps(sidecar))
    file = damaged.open()
    with pytest.raises(BetonError, match="label 3, but its sidecar names 3 classes"):
        _ = file.num_classes


def test_any_damage_is_an_error_or_harmless(damaged: Damaged) -> None:
    """A thousand files with random bytes in random places of their tables."""
    rng = np.random.default_rng(0)
    content = np.frombuffer(damaged.content, np.uint8)
    table = int(damaged.header["alloc_table_ptr"][0])
    named = HEADER.itemsize + FIELD_DESCRIPTOR.itemsize
    places = np.r_[0 : HEADER.itemsize + 17, named : named + 17, named * 2 - 24 : 3000, table : len(content)]
    damaged.path.write_bytes(content)
    num_opened, messages = 0, []
    with damaged.path.open("r+b", buffering=0) as file:
        for _ in range(1000):
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
    assert min(num_opened, len(messages)) > 50
    assert all(str(damaged.path) in message for message in messages)
