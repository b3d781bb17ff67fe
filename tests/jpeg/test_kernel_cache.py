"""Kernels are compiled once for all processes, and load without numba, with and without a linker."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rebar.jpeg import kernel_cache
from rebar.jpeg.crop_decoder import CropDecoder
from rebar.jpeg.kernel_cache import cache_key, object_path
from tests.conftest import REPOSITORY
from tests.jpeg.images import decode_crop, encode, photograph

DECODE_CROP = """
import sys
import numpy as np
from rebar.jpeg.crop_decoder import CropDecoder
jpeg, out = np.fromfile({file!r}, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
sizes, boxes = np.array([jpeg.size], np.uint64), np.array([[1, 2, 40, 50]])
statuses = CropDecoder(60, 60).decode_crops(jpeg, np.zeros(1, np.uint64), sizes, boxes, np.zeros(1, np.bool_), out)
assert statuses[0] == 0
loaded = {{"numba", "llvmlite"}} & set(sys.modules)
print(int(out.sum()), ",".join(sorted(loaded)) or "neither")
"""


@pytest.fixture
def jpeg_file(tmp_path: Path) -> Path:
    file = tmp_path / "one.jpg"
    file.write_bytes(encode(photograph(50, 60), interval=2).tobytes())
    return file


@pytest.fixture
def cache_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use temporary folders for the cache: NUMBA_CACHE_DIR, which is returned, and the user's cache."""
    parent = tmp_path / "numba"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    kernel_cache.kernel_folder.cache_clear()
    yield parent
    monkeypatch.undo()
    kernel_cache.kernel_folder.cache_clear()


def start_process(file: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start a process that decodes a crop; it prints the sum of the pixels and the compiler modules it imported."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", DECODE_CROP.format(file=str(file))]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, text=True, **pipes)


def expected_sum(file: Path) -> int:
    return int(decode_crop(CropDecoder(60, 60), np.fromfile(file, np.uint8), (1, 2, 40, 50), (32, 32))[1].sum())


def test_another_process_decodes_without_numba(jpeg_file: Path) -> None:
    expected = expected_sum(jpeg_file)  # compiles the kernels if necessary
    output, errors = start_process(jpeg_file).communicate()
    assert (output.split(), errors) == ([str(expected), "neither"], "")


def test_another_process_transcodes_without_numba(jpeg_file: Path) -> None:
    expected_sum(jpeg_file)
    code = (
        "import sys; from pathlib import Path; from rebar.beton.encode import ImagePolicy, encode_image;"
        f"print(encode_image(Path({str(jpeg_file)!r}).read_bytes(), ImagePolicy(), 0).lossless,"
        "{'numba', 'llvmlite'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_decode_crops_reads_any_contiguous_memory(tmp_path: Path) -> None:
    jpeg = encode(photograph(50, 60), interval=2)
    (tmp_path / "one.jpg").write_bytes(jpeg.tobytes())
    decoder = CropDecoder(60, 60)
    kinds = [
        jpeg,
        np.frombuffer(jpeg.tobytes(), np.uint8),
        np.memmap(tmp_path / "one.jpg", np.uint8, mode="r"),
        np.concatenate([jpeg, jpeg])[: jpeg.size],
    ]
    results = [decode_crop(decoder, data, (1, 2, 40, 50), (32, 32))[1] for data in kinds]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_decode_crops_raises_for_memory_that_the_kernel_would_misread() -> None:
    decoder, out = CropDecoder(60, 60), np.zeros((1, 32, 32, 3), np.uint8)
    jpeg = encode(photograph(50, 60), interval=2)
    one, box, flip = np.array([jpeg.size // 2], np.uint64), np.array([[1, 2, 40, 50]]), np.zeros(1, np.bool_)
    for wrong in (jpeg.astype(np.int16), jpeg[::2], jpeg[:, None]):
        with pytest.raises(ValueError, match="data must be contiguous uint8"):
            decoder.decode_crops(wrong, np.zeros(1, np.uint64), one, box, flip, out)


@pytest.mark.parametrize("changed", ["kernel_arguments.py", "kernels/entropy.py"])
def test_cache_key_changes_with_any_source(changed: str, tmp_path: Path) -> None:
    package = REPOSITORY / "rebar/jpeg"
    for source in package.rglob("*.py"):
        copy = tmp_path / source.relative_to(package)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    assert cache_key(tmp_path) == cache_key()
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert cache_key(tmp_path) != cache_key()


def test_cache_folder_is_private(cache_parent: Path) -> None:
    folder = object_path().parent
    assert folder.parent == cache_parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_cache_folder_that_others_can_write_to_is_not_used(mode: int, cache_parent: Path) -> None:
    shared = cache_parent / "jpeg-kernels"
    shared.mkdir(parents=True)
    shared.chmod(mode)
    assert object_path().is_relative_to(cache_parent.parent / "user")


def test_cache_folder_that_is_a_symlink_is_not_used(cache_parent: Path, tmp_path: Path) -> None:
    cache_parent.mkdir()
    (cache_parent / "jpeg-kernels").symlink_to(tmp_path, target_is_directory=True)
    assert object_path().is_relative_to(tmp_path / "user")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_not_loaded(
    cache_parent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A planted library is replaced: the kernels are compiled again, which fails here on purpose."""
    planted = object_path()
    planted.write_bytes(b"")
    os.chown(planted, 12345, 12345)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))  # the child process that compiles
    kernel_cache.load_kernel.cache_clear()
    try:
        with pytest.raises(kernel_cache.RebarError) as caught:
            kernel_cache.load_kernel()
    finally:
        kernel_cache.load_kernel.cache_clear()
    assert caught.value.code == "jpeg-kernels-not-compiled"
    assert "compiling the JPEG kernels" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_cache_folder_of_another_user_is_not_used(cache_parent: Path) -> None:
    (cache_parent / "jpeg-kernels").mkdir(parents=True, mode=0o700)
    os.chown(cache_parent / "jpeg-kernels", 12345, 12345)
    assert object_path().is_relative_to(cache_parent.parent / "user")


def test_another_process_loads_the_object_file_if_it_was_not_linked(jpeg_file: Path, tmp_path: Path) -> None:
    expected = expected_sum(jpeg_file)
    copy = tmp_path / "jpeg-kernels" / object_path().name
    copy.parent.mkdir(mode=0o700)
    shutil.copy(object_path(), copy)  # and not the library next to it
    output, errors = start_process(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert (output.split(), errors) == ([str(expected), "llvmlite"], "")


@pytest.mark.parametrize(("mode", "is_used"), [(0o777, False), (0o1777, True), (0o775, True)])
def test_cache_in_a_folder_whose_files_others_can_replace_is_not_used(
    mode: int, is_used: bool, cache_parent: Path
) -> None:
    cache_parent.mkdir()
    cache_parent.chmod(mode)
    assert object_path().is_relative_to(cache_parent) == is_used


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("owner", "mode", "is_loaded"), [(0, 0o755, True), (12345, 0o755, False), (0, 0o757, False), (0, 0o775, False)]
)
def test_library_that_another_user_could_have_written_is_not_loaded(
    owner: int, mode: int, is_loaded: bool, jpeg_file: Path, tmp_path: Path
) -> None:
    expected = expected_sum(jpeg_file)
    folder = tmp_path / "jpeg-kernels"
    folder.mkdir(mode=0o700)
    shutil.copy(object_path(), folder)
    library = Path(shutil.copy(object_path().with_suffix(".so"), folder))
    os.chown(library, owner, owner)
    library.chmod(mode)
    output, errors = start_process(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert (output.split(), errors) == ([str(expected), "neither" if is_loaded else "llvmlite"], "")


@pytest.mark.nightly
def test_concurrent_processes_compile_once_without_a_linker(jpeg_file: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(tmp_path / "bin")}
    processes = [start_process(jpeg_file, **environment) for _ in range(3)]
    results = [process.communicate() for process in processes]
    assert sum("compiling" in errors for _, errors in results) == 1
    assert {tuple(output.split()) for output, _ in results} == {(str(expected_sum(jpeg_file)), "llvmlite")}


@pytest.mark.nightly
def test_next_process_compiles_after_one_was_killed_while_compiling(jpeg_file: Path, tmp_path: Path) -> None:
    first = start_process(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stderr is not None
    assert "compiling" in first.stderr.readline()
    first.kill()
    first.wait()
    output, errors = start_process(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert output.split() == [str(expected_sum(jpeg_file)), "neither"], errors
