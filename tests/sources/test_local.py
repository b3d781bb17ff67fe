"""Sources on the local disk, through the command line."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from rebar.beton import BetonFile
from rebar.sources import Request, open_source
from rebar.sources.labels import find_labels
from tests.sources.conftest import (
    SYNSETS,
    Write,
    contents_of_folder,
    images_of_file,
    images_of_folder,
    refusal,
    run,
    write_parquet,
)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def val_images(imagenet: Path) -> list[tuple[str, str, bytes]]:
    """(name, synset, JPEG) of the validation images, by name."""
    paths = sorted((imagenet / "val").glob("*/*"), key=lambda path: path.name)
    return [(path.name, path.parent.name, path.read_bytes()) for path in paths]


def lists_of_labels(imagenet: Path) -> dict[str, list[str]]:
    """The lines of each form of list; those with names in another order than the images."""
    stems = [(name.removesuffix(".JPEG"), synset) for name, synset, _ in val_images(imagenet)]
    return {
        "kaggle": ["ImageId,PredictionString", *(f"{s},{n} 1 2 3 4 {n} 5 6 7 8" for s, n in reversed(stems))],
        "synsets": [synset for _, synset in stems],
        "pairs": [f"{stem}.JPEG {synset}" for stem, synset in reversed(stems)],
        "valprep": [*(f"mkdir -p {n}" for n in SYNSETS), *(f"mv {s}.JPEG {n}/" for s, n in reversed(stems))],
    }


@pytest.fixture(scope="session")
def devkit(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The development kit's data/: IDs that are not in the order of the synsets, as in the real one."""
    savemat = pytest.importorskip("scipy.io").savemat
    data = tmp_path_factory.mktemp("devkit") / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    ids = {SYNSETS[1]: 1, SYNSETS[2]: 2, SYNSETS[0]: 3}
    kinds = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    entries = [(number, synset, "a thing", 0) for synset, number in ids.items()]
    entries.append((4, "n00001740", "entity", 2))  # an inner node of the tree, as in the real one
    savemat(str(data / "meta.mat"), {"synsets": np.array(entries, kinds)})
    lines = [f"{ids[synset]}\n" for _, synset, _ in val_images(imagenet)]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    return data.parent


@pytest.fixture
def flat(imagenet: Path, tmp_path: Path) -> Path:
    """The validation images in one folder, val/."""
    folder = tmp_path / "flat" / "val"
    folder.mkdir(parents=True)
    for name, _, content in val_images(imagenet):
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def archives(imagenet: Path, devkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the three downloads, as ILSVRC offers them."""
    folder = tmp_path_factory.mktemp("archives")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in reversed(SYNSETS):  # the order of the archive is not that of the synsets
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for path in sorted((imagenet / "train" / synset).iterdir()):
                    add(inner, path.name, path.read_bytes())
            add(outer, f"{synset}.tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, _, content in val_images(imagenet):
            add(tar, name, content)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(devkit, devkit.name)
    return folder


class TestFlatFolder:
    def test_with_the_development_kit_beside_it(self, imagenet: Path, flat: Path, devkit: Path, write: Write) -> None:
        shutil.copytree(devkit, flat.parent / devkit.name)
        file = write(flat, "val")
        assert file.class_names == SYNSETS
        assert images_of_file(file) == images_of_folder(imagenet / "val")

    def test_with_a_script_that_sorts_them(self, imagenet: Path, flat: Path, tmp_path: Path, write: Write) -> None:
        (tmp_path / "any.sh").write_text("\n".join(lists_of_labels(imagenet)["valprep"]))
        file = write(flat.parent, "val", "--labels", tmp_path / "any.sh")
        assert images_of_file(file) == images_of_folder(imagenet / "val")

    @pytest.mark.parametrize("form", ["kaggle", "synsets", "pairs", "valprep"])
    def test_any_list_is_read(self, form: str, imagenet: Path, tmp_path: Path) -> None:
        images = val_images(imagenet)
        (tmp_path / "any.txt").write_text("\n".join(lists_of_labels(imagenet)[form]) + "\n")
        labels = find_labels(tmp_path, str(tmp_path / "any.txt"))
        assert labels.class_names == list(SYNSETS)
        assert labels.of([name for name, _, _ in images], "val") == [synset for _, synset, _ in images]

    @pytest.mark.parametrize(
        "synsets", ["n02119789\nn03000684\nn01440764", "n01440764 3 fish\nn02119789 1\nn03000684 2"]
    )
    def test_ids_with_a_text_of_synsets(self, synsets: str, imagenet: Path, devkit: Path, tmp_path: Path) -> None:
        images = val_images(imagenet)
        shutil.copy(devkit / "data" / "ILSVRC2012_validation_ground_truth.txt", tmp_path)
        (tmp_path / "synsets.txt").write_text(synsets)
        labels = find_labels(tmp_path / "Data" / "val")
        assert labels.of([name for name, _, _ in images], "val") == [synset for _, synset, _ in images]

    def test_kaggles_layout(self, imagenet: Path, flat: Path, tmp_path: Path) -> None:
        folder = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
        folder.mkdir(parents=True)
        flat.rename(folder / "val")
        (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("\n".join(lists_of_labels(imagenet)["kaggle"]))
        kind, source = open_source(Request(str(tmp_path / "kaggle"), "val"))
        assert kind == "flat"
        assert [source.label(index) for index in range(9)] == [0] * 3 + [1] * 3 + [2] * 3

    def test_without_a_list(self, flat: Path, tmp_path: Path) -> None:
        message = refusal(flat, "val", tmp_path / "val.beton")
        assert "no list of their classes is near" in message
        assert "LOC_val_solution.csv" in message

    def test_a_image_that_the_list_lacks(self, flat: Path, tmp_path: Path) -> None:
        (flat.parent / "val_labels.txt").write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
        message = refusal(flat, "val", tmp_path / "val.beton")
        assert "ILSVRC2012_val_00000002.JPEG and 7 more images are not in" in message

    def test_an_incomplete_copy_is_remarked(self, imagenet: Path, flat: Path, tmp_path: Path) -> None:
        (flat.parent / "val_labels.txt").write_text("\n".join(synset for _, synset, _ in val_images(imagenet)))
        (flat / "ILSVRC2012_val_00000004.JPEG").unlink()
        done = run("--split", "val", "--data-dir", flat, "--write-path", tmp_path / "val.beton")
        assert "has 9 images" in done.stderr
        names = BetonFile.open(tmp_path / "val.beton").labels
        assert names.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]


class TestTar:
    @pytest.mark.parametrize("split", ["train", "val"])
    def test_the_original_archives(self, split: str, imagenet: Path, archives: Path, write: Write) -> None:
        file = write(archives, split)
        assert file.class_names == SYNSETS
        expected = images_of_folder(imagenet / split)
        if split == "val":
            assert images_of_file(file) == expected
        else:
            assert images_of_file(file) == images_of_file(write(imagenet, split))
            assert sorted(images_of_file(file)) == sorted(expected)

    def test_a_packed_folder(self, imagenet: Path, tmp_path: Path, write: Write) -> None:
        with tarfile.open(tmp_path / "imagenette.tar", "w") as tar:
            tar.add(imagenet, "imagenette2")
        assert images_of_file(write(tmp_path / "imagenette.tar", "val")) == images_of_folder(imagenet / "val")
        with tarfile.open(tmp_path / "val_only.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(imagenet / "val", "./" + "deep" * 40)  # a name that takes a header of its own
        assert images_of_file(write(tmp_path / "val_only.tar", "val")) == images_of_folder(imagenet / "val")

    def test_the_other_split(self, imagenet: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(imagenet / "train", "train")
        assert "no folder val/" in refusal(tmp_path / "a.tar", "val", tmp_path / "val.beton")

    @pytest.mark.parametrize("keep", [0.4, 0.7])
    def test_cut_short(self, keep: float, archives: Path, tmp_path: Path) -> None:
        content = (archives / "ILSVRC2012_img_train.tar").read_bytes()
        broken = tmp_path / "broken.tar"
        broken.write_bytes(content[: int(keep * len(content))])
        assert "broken.tar: is no tar, or is cut short" in refusal(broken, "train", tmp_path / "train.beton")

    def test_compressed(self, imagenet: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
            tar.add(imagenet / "val", "val")
        assert "is compressed" in refusal(tmp_path / "a.tgz", "val", tmp_path / "val.beton")


class TestWebDataset:
    def shards(self, imagenet: Path, folder: Path, form: str) -> Path:
        """Two shards a split of all images; the class a number, a name, or within JSON."""
        folder.mkdir()
        for split in ("train", "val"):
            contents = contents_of_folder(imagenet / split)
            for number in range(2):
                with tarfile.open(folder / f"in1k-{split}-{number:04}.tar", "w") as tar:
                    for key, (synset, jpeg) in list(enumerate(contents))[number::2]:
                        label = str(SYNSETS.index(synset))
                        told = {"cls": label, "name": synset, "json": json.dumps({"label": int(label), "width": 3})}
                        add(tar, f"{key:06}.jpg", jpeg)
                        add(tar, f"{key:06}.{'json' if form == 'json' else 'cls'}", told[form].encode())
        return folder

    @pytest.mark.parametrize("form", ["cls", "name", "json"])
    def test_a_folder_of_shards(self, form: str, imagenet: Path, tmp_path: Path, write: Write) -> None:
        folder = self.shards(imagenet, tmp_path / "shards", form)
        if form == "cls":
            (folder / "classes.txt").write_text("\n".join(SYNSETS))
        file = write(folder, "val")
        expected = images_of_folder(imagenet / "val")
        if form == "json":
            expected = [(str(SYNSETS.index(name)), pixels) for name, pixels in expected]
        assert images_of_file(file) == expected[0::2] + expected[1::2]

    def test_patterns(self, imagenet: Path, tmp_path: Path, write: Write) -> None:
        folder = self.shards(imagenet, tmp_path / "shards", "name")
        assert len(write(folder / "in1k-val-{0000..0001}.tar", "val")) == 9
        assert len(write(folder / "*-val-*1.tar", "val")) == 4
        assert len(write(folder / "in1k-val-0000.tar", "val")) == 5
        message = refusal(folder / "in1k-val-{0000..0003}.tar", "val", tmp_path / "val.beton")
        assert "in1k-val-0002.tar: no such file, and 1 more" in message

    def test_a_sample_without_its_class(self, imagenet: Path, tmp_path: Path) -> None:
        folder = self.shards(imagenet, tmp_path / "shards", "cls")
        with tarfile.open(folder / "in1k-val-0002.tar", "w") as tar:
            add(tar, "9.jpg", b"image")
        assert "in1k-val-0002.tar:9.jpg: has neither 9.cls nor 9.json" in refusal(folder, "val", tmp_path / "val.beton")


class TestParquet:
    @pytest.fixture
    def folder(self, imagenet: Path, tmp_path: Path) -> Path:
        """As Hugging Face stores it: data/<split>-0000N-of-00002.parquet, small row groups, the classes' names."""
        return write_parquet(imagenet, tmp_path / "hub")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_folder_of_files(self, split: str, imagenet: Path, folder: Path, write: Write) -> None:
        file = write(folder, split, "--num-workers", 2, "--chunk-size", 3)
        assert file.class_names == SYNSETS
        expected = images_of_folder(imagenet / split)
        found = images_of_file(file)
        assert (found == expected) == (split == "val")
        assert sorted(found) == sorted(expected)

    def test_rows_are_named(self, folder: Path) -> None:
        _, source = open_source(Request(str(folder), "train"))
        names = [source.name(index).rpartition("/")[2] for index in range(len(source))]
        assert names == [
            f"train-{file:05}-of-00002.parquet: row {row}" for file, rows in ((0, 8), (1, 7)) for row in range(rows)
        ]

    def test_one_file(self, folder: Path, write: Write) -> None:
        assert len(write(folder / "data" / "train-00001-of-00002.parquet", "train")) == 7

    def test_damaged(self, folder: Path, tmp_path: Path) -> None:
        path = folder / "data" / "validation-00000-of-00002.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        message = refusal(folder, "val", tmp_path / "val.beton")
        assert "validation-00000-of-00002.parquet: is no Parquet file, or is cut short" in message

    def test_other_columns(self, tmp_path: Path) -> None:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
        assert "has no columns of images and labels, only text" in refusal(
            tmp_path / "a.parquet", "val", tmp_path / "val.beton"
        )


class TestBeton:
    def test_packed_anew(self, imagenet: Path, write: Write, tmp_path: Path) -> None:
        first = write(imagenet, "val").path
        for ending in ("", ".json"):
            first.with_name(f"val.beton{ending}").rename(tmp_path / f"old.beton{ending}")
        again = write(tmp_path / "old.beton", "val")
        assert again.class_names == SYNSETS
        assert images_of_file(again) == images_of_folder(imagenet / "val")

    def test_smaller_from_a_folder_of_files(self, imagenet: Path, write: Write, tmp_path: Path) -> None:
        write(imagenet, "val")
        small = tmp_path / "small.beton"
        options = ("--max-resolution", 16, "--subset", 6)
        done = run("--split", "val", "--data-dir", tmp_path / "written", "--write-path", small, *options)
        assert done.returncode == 0, done.stderr
        file = BetonFile.open(small)
        assert np.maximum(file.heights, file.widths).tolist() == [16] * 6
        assert file.labels.tolist() == [0, 0, 1, 1, 2, 2]

    def test_stock_ffcvs_file(self, imagenet: Path, write: Write, tmp_path: Path) -> None:
        """It has no sidecar: the classes are called by their numbers."""
        fields, writer = pytest.importorskip("ffcv.fields"), pytest.importorskip("ffcv.writer")
        folder = images_of_folder(imagenet / "val")
        images = [(np.frombuffer(p, np.uint8).reshape(-1, 30, 3), SYNSETS.index(name)) for name, p in folder]
        kinds = {"image": fields.RGBImageField(write_mode="raw"), "label": fields.IntField()}
        path = tmp_path / "stock.beton"
        writer.DatasetWriter(str(path), kinds, num_workers=1).from_indexed_dataset(images)
        found = images_of_file(write(path, "val"))
        assert found == [(str(SYNSETS.index(name)), pixels) for name, pixels in folder]


class TestWhatIsNotRecognised:
    def test_says_what_would_be(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("nothing")
        message = refusal(tmp_path / "notes.txt", "train", tmp_path / "train.beton")
        assert "is a file of a kind that is not known" in message
        for kind in ("hf", "s3", "beton", "tar", "webdataset", "parquet", "folder", "flat"):
            assert f"\n  {kind:11}" in message

    def test_a_kind_may_be_insisted_on(self, imagenet: Path, tmp_path: Path, write: Write) -> None:
        assert len(write(imagenet, "val", "--dataset", "folder")) == 9
        assert "no images" in refusal(imagenet, "val", tmp_path / "val.beton", "--dataset", "flat")
