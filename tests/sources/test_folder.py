"""A folder of class folders."""

import os
import pickle
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.sources import ImageFolder


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def test_classes_and_images_are_sorted_by_name(tmp_path: Path) -> None:
    source = ImageFolder(make(tmp_path, "b/2.png", "b/10.jpg", "a/x.JPEG", "a/notes.txt", "readme.md"))
    assert list(source.class_names) == ["a", "b"]
    assert [source.name(index) for index in range(len(source))] == [
        str(tmp_path / name) for name in ("a/x.JPEG", "b/10.jpg", "b/2.png")
    ]
    assert [source.label(index) for index in range(len(source))] == [0, 1, 1]
    assert source.read(1) == b"b/10.jpg"


def test_it_is_torchvisions_order(tmp_path: Path) -> None:
    names = ("b/z.jpg", "b/deep/a.jpg", "b/deep/er/0.PNG", "b/a.webp", "a/é.tiff", "a/Z.bmp", "a/.hidden.pgm")
    source = ImageFolder(make(tmp_path, *names))
    walks = [sorted(os.walk(tmp_path / name)) for name in source.class_names]  # as its make_dataset does
    expected = [
        (os.path.join(folder, name), label)
        for label, walk in enumerate(walks)
        for folder, _, files in walk
        for name in sorted(files)
    ]
    assert [(source.name(i), source.label(i)) for i in range(len(source))] == expected


def test_names_need_not_be_unicode(tmp_path: Path) -> None:
    make(tmp_path, "a/ok.jpg")
    with open(os.fsencode(tmp_path) + b"/a/\xff.jpg", "wb") as file:
        file.write(b"image")
    assert ImageFolder(tmp_path).read(1) == b"image"


def test_it_is_small_to_pickle(tmp_path: Path) -> None:
    source = ImageFolder(make(tmp_path, *(f"class/{number:08}.jpg" for number in range(1000))))
    content = pickle.dumps(source)
    assert len(content) < 1000 * (12 + 8 + 4) + 1000
    assert pickle.loads(content).name(999) == source.name(999)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/x.jpg", "b/x.txt"), r"no images in class folder b; remove it or complete"),
        (tuple(f"{n}/x.txt" for n in range(8)), r"class folder 0, 1, 2, 3, 4 and 3 more; remove them"),
        (("x.txt",), r"holds no class folders; expected .*<class>/<image>"),
        (("x.jpg", "y.jpg"), r"2 images \(such as x\.jpg\) lie directly in it"),
        ((), r"images: no such folder"),
    ],
)
def test_what_is_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RebarError, match=message):
        ImageFolder(make(tmp_path / "images", *names))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RebarError, match="is not a folder"):
        ImageFolder(make(tmp_path, "x") / "x")


def test_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    make(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    with pytest.raises(RebarError, match=r"cannot be read: Too many levels"):
        ImageFolder(tmp_path)
