"""write_dataset.py --verify, --info and --stats, on intact and damaged files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rebar.beton import BetonError, BetonFile, ImagePolicy, inspect, write_beton
from rebar.beton.format import ALLOCATION, FIELD_DESCRIPTOR, HEADER
from rebar.beton.images import decode_image
from rebar.beton.inspect import contact_sheet
from rebar.beton.pages import SAMPLE
from rebar.beton.sidecar import sidecar_path
from rebar.beton.verify import measure_stats, verify
from rebar.errors import RebarError
from rebar.loading import CenterCrop, CorruptSampleError, Loader
from rebar.sources import ImageFolder
from tests.jpeg.images import cmyk
from write_dataset import main

TABLES_START = HEADER.itemsize + 2 * FIELD_DESCRIPTOR.itemsize  # where the sample records start


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def test_verify_intact_file(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--verify", str(copied)])
    lines = capsys.readouterr().out.splitlines()
    assert "24 in 3 classes, 8 per class" in lines[0]
    assert [line.split() for line in lines[1:4]] == [["8", "n00"], ["8", "n01"], ["8", "n02"]]
    assert lines[4].startswith("ok ")


def test_verify_prints_every_problem(copied: Path, beton: BetonFile, capsys: pytest.CaptureFixture[str]) -> None:
    offset = int(beton.offsets[5])
    overwrite(copied, offset + 700, b"\xff\xd9\xff\xd9")
    with pytest.raises(RebarError, match="2 problems") as raised:
        main(["--verify", str(copied)])
    assert raised.value.code == "beton-verification-failed"
    printed = capsys.readouterr().out
    assert f"page 1 at byte {beton.page_size:,} (samples 0 to 23)" in printed
    assert f"sample 5: image at byte {offset:,} cannot be decoded" in printed


def test_verify_damaged_tables_without_a_sidecar(copied: Path, beton: BetonFile) -> None:
    sidecar_path(copied).unlink()
    samples = np.fromfile(copied, SAMPLE, len(beton), offset=TABLES_START)
    allocations = np.fromfile(copied, ALLOCATION, len(beton), offset=copied.stat().st_size - 24 * len(beton))
    samples["f1"][3] = -2
    samples["f0"]["width"][7] = 17
    allocations["size"][9] += 10
    overwrite(copied, TABLES_START, samples.tobytes())
    overwrite(copied, copied.stat().st_size - allocations.nbytes, allocations.tobytes())
    problems = verify(copied).problems
    assert any("sample 3: label -2" in problem for problem in problems)
    assert any("sample 7: image" in problem and "but the table records" in problem for problem in problems)
    assert any("images overlap" in problem for problem in problems)


def test_verify_file_of_stock_ffcv(tmp_path: Path) -> None:
    writer = pytest.importorskip("ffcv.writer")
    from ffcv.fields import IntField, RGBImageField

    class Numbers:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            return np.random.default_rng(index).integers(0, 256, (30, 40 + index, 3), np.uint8), index % 4

    path = tmp_path / "stock.beton"
    fields = {"image": RGBImageField(write_mode="proportion", compress_probability=0.5), "label": IntField()}
    writer.DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Numbers())
    found = verify(path)
    assert found.problems == []
    assert found.class_counts.tolist() == [3, 2, 2, 2]


def test_info_describes_the_file_and_draws_a_contact_sheet(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--info", str(copied)])
    printed = capsys.readouterr().out
    for part in ("24 in 3 classes", "24 JPEG, 0 raw", "n00, n01, n02", "max_resolution 200"):
        assert part in printed
    sheet = cv2.imread(str(copied) + ".png")
    assert np.array_equal(sheet[..., ::-1], contact_sheet(copied))
    assert sheet.shape[1] > 8 * 160
    image = decode_image(BetonFile.open(copied), 0)
    assert np.abs(sheet[60:110, 60:110].mean((0, 1))[::-1] - image.mean((0, 1))).mean() < 60


def test_contact_sheet_draws_corrupt_images_red(copied: Path, beton: BetonFile) -> None:
    overwrite(copied, int(beton.offsets[0]), bytes(100))
    assert contact_sheet(copied)[10, 10].tolist() == [200, 0, 0]


def test_stats_equal_those_of_the_pixels(image_tree: Path, tmp_path: Path) -> None:
    path, source = tmp_path / "raw.beton", ImageFolder(image_tree)
    policy = ImagePolicy(max_resolution=100, write_mode="raw")
    write_beton(source, path, policy=policy, order=np.arange(len(source)), progress=False)
    file = BetonFile.open(path)
    images = [decode_image(file, index).reshape(-1, 3) / 255 for index in range(len(file))]
    mean = np.mean([image.mean(0) for image in images], axis=0)
    squares = np.mean([(image**2).mean(0) for image in images], axis=0)
    main(["--stats", str(path), "--out", str(tmp_path / "stats.json")])
    stats = json.loads((tmp_path / "stats.json").read_text())
    np.testing.assert_allclose(stats["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(stats["std"], np.sqrt(squares - mean**2), atol=1e-6)
    assert stats["num_samples"] == stats["num_samples_in_file"] == len(source)


def test_stats_measure_evenly_spaced_images_unless_exact(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "STATS_SAMPLES", 7)
    file, out = BetonFile.open(copied), tmp_path / "stats.json"
    main(["--stats", str(copied), "--out", str(out)])
    sampled = json.loads(out.read_text())
    main(["--stats", str(copied), "--out", str(out), "--overwrite", "--exact"])
    exact = json.loads(out.read_text())
    assert [stats["num_samples"] for stats in (sampled, exact)] == [7, len(file)]
    assert sampled["num_samples_in_file"] == len(file)
    assert "evenly spaced" in sampled["samples"]
    chosen = [decode_image(file, number * len(file) // 7) for number in range(7)]
    mean = np.mean([image.reshape(-1, 3).mean(0) / 255 for image in chosen], axis=0)
    np.testing.assert_allclose(sampled["mean"], mean, atol=1e-6)
    assert sampled["mean"] != exact["mean"]


def test_stats_of_fewer_images_than_samples_measure_each_once(copied: Path) -> None:
    assert measure_stats(copied, max_samples=1000) == measure_stats(copied)
    assert measure_stats(copied, max_samples=1).num_samples == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--verify", "absent.beton"], "beton-not-found"),
        (["--info", "copy.beton", "--split", "train"], "config-invalid-value"),
        (["--info", "copy.beton", "--verify", "copy.beton"], "config-invalid-value"),
        (["--info", "copy.beton", "--out", "absent/a.png"], "file-not-writable"),
    ],
)
def test_inspect_main_raises_for_invalid_arguments(
    arguments: list[str], code: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied.parent)
    with pytest.raises(RebarError) as raised:
        main(arguments)
    assert raised.value.code == code


@pytest.mark.parametrize(("command", "suffix"), [("--info", ".png"), ("--stats", ".stats.json")])
@pytest.mark.parametrize("with_out", [False, True])
def test_existing_output_is_replaced_only_with_overwrite(
    command: str, suffix: str, with_out: bool, copied: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine" if with_out else copied.with_name(copied.name + suffix)
    out.write_bytes(b"precious")
    arguments = [command, str(copied), *(["--out", str(out)] if with_out else [])]
    with pytest.raises(RebarError) as raised:
        main(arguments)
    assert raised.value.code == "write-target-exists"
    assert out.read_bytes() == b"precious"
    main([*arguments, "--overwrite"])
    assert out.read_bytes() != b"precious"


@pytest.mark.nightly
@pytest.mark.parametrize("with_sidecar", [True, False])
def test_random_damage_is_named_by_verify_and_loader(copied: Path, beton: BetonFile, with_sidecar: bool) -> None:
    """verify names the damage or refuses the file; the loader raises an error with the path, or returns images."""
    if not with_sidecar:
        sidecar_path(copied).unlink()
    content = copied.read_bytes()
    tables_end, images_end = TABLES_START + 24 * SAMPLE.itemsize, int((beton.offsets + beton.sizes).max())
    used = np.r_[0:tables_end, int(beton.offsets.min()) : images_end, len(content) - 24 * 24 : len(content)]
    rng = np.random.default_rng(int(with_sidecar))
    named = 0
    for number in range(60):
        way = number % 4
        damaged = bytearray(content)
        for place in rng.choice(used, 1 if way == 0 else 20):
            damaged[place] ^= int(rng.integers(1, 256))
        if way == 2:
            damaged = damaged[: int(rng.integers(0, len(damaged)))]
        if way == 3:
            start, length = int(rng.choice(used)), int(rng.integers(1, 5000))
            damaged[start : start + length] = rng.bytes(len(damaged[start : start + length]))
        copied.write_bytes(damaged)
        found = ""
        try:
            found = "\n".join(verify(copied).problems)
        except BetonError as error:
            found = str(error) if str(copied) in str(error) else "unnamed"
        assert found != "unnamed"
        named += bool(found)
        try:
            for images, labels in Loader(copied, 8, num_workers=1, cropper=CenterCrop(), resolution=32):
                assert len(images) == len(labels)
        except (BetonError, CorruptSampleError) as error:
            found = str(error) if str(copied) in str(error) else "unnamed"
        assert found != "unnamed"
    assert named == 60 if with_sidecar else named > 30


@pytest.mark.parametrize("options", [["--info", "a.beton", "--exact"], ["--verify", "a.beton", "--out", "b.png"]])
def test_options_of_another_command_are_refused(options: list[str]) -> None:
    with pytest.raises(RebarError) as error:
        main(options)
    assert error.value.code == "config-invalid-value"


def test_cmyk_image_of_other_software_is_shown_and_measured(tmp_path: Path) -> None:
    """Other software may store a CMYK JPEG as it is, and Rebar's reader converts it."""
    light = np.full((40, 60, 3), 200, np.uint8)
    (tmp_path / "tree" / "a").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "tree" / "a" / "0.jpg"), np.random.default_rng(0).integers(0, 256, light.shape))
    path = tmp_path / "train.beton"
    write_beton(ImageFolder(tmp_path / "tree"), path, policy=ImagePolicy(), order=np.arange(1), progress=False)
    sidecar_path(path).unlink()
    file, content = BetonFile.open(path), cmyk(light)
    assert len(content) < int(file.sizes[0])
    overwrite(path, int(file.offsets[0]), content + bytes(int(file.sizes[0]) - len(content)))
    assert contact_sheet(path)[80, 80].tolist() == pytest.approx([200] * 3, abs=3)
    assert measure_stats(path).mean == pytest.approx([200 / 255] * 3, abs=0.02)
    assert verify(path).problems == []
