"""The kernel is compiled once for all processes, and then loads at once, with a linker or without."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rebar.jpeg import kernel_cache
from rebar.jpeg.crop_decoder import CropDecoder
from tests.conftest import REPOSITORY
from tests.jpeg.images import crop_fast, encode, photograph

CROP = """
import sys, time
import numpy as np
start = time.perf_counter()
from rebar.jpeg.crop_decoder import CropDecoder
jpeg, out = np.fromfile({file!r}, np.uint8), np.zeros((1, 32, 32, 3), np.uint8)
sizes, boxes = np.array([jpeg.size], np.uint64), np.array([[1, 2, 40, 50]])
statuses = CropDecoder(60, 60).decode_crops(jpeg, np.zeros(1, np.uint64), sizes, boxes, np.zeros(1, np.bool_), out)
assert statuses[0] == 0
loaded = {{"numba", "llvmlite"}} & set(sys.modules)
print(int(out.sum()), ",".join(sorted(loaded)) or "neither", time.perf_counter() - start)
"""


@pytest.fixture
def jpeg_file(tmp_path: Path) -> Path:
    file = tmp_path / "one.jpg"
    file.write_bytes(encode(photograph(50, 60), interval=2).tobytes())
    return file


def start_crop(file: Path, **environment: str) -> "subprocess.Popen[str]":
    """Another process that decodes a crop; prints the sum of its pixels, what it loaded, and its seconds."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-c", CROP.format(file=str(file))]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | environment, text=True, **pipes)


def expected_sum(file: Path) -> int:
    return int(crop_fast(CropDecoder(60, 60), np.fromfile(file, np.uint8), (1, 2, 40, 50), (32, 32))[1].sum())


def test_another_process_needs_no_numba(jpeg_file: Path) -> None:
    expected = expected_sum(jpeg_file)  # compiled at the latest now
    output, errors = start_crop(jpeg_file).communicate()
    total, loaded, seconds = output.split()
    assert (int(total), loaded, errors) == (expected, "neither", "")
    assert float(seconds) < 5  # about 0.05 on a quiet machine; compiling takes 20


def test_a_process_that_transcodes_needs_no_numba(jpeg_file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rebar.beton.encode import ImagePolicy, encode_image;"
        f"print(encode_image(Path({str(jpeg_file)!r}).read_bytes(), ImagePolicy(), 0).passed_through,"
        "{'numba', 'llvmlite'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "True set()\n"


def test_any_memory_will_do(tmp_path: Path) -> None:
    jpeg = encode(photograph(50, 60), interval=2)
    (tmp_path / "one.jpg").write_bytes(jpeg.tobytes())
    decoder = CropDecoder(60, 60)
    kinds = [
        jpeg,
        np.frombuffer(jpeg.tobytes(), np.uint8),
        np.memmap(tmp_path / "one.jpg", np.uint8, mode="r"),
        np.concatenate([jpeg, jpeg])[: jpeg.size],
    ]
    results = [crop_fast(decoder, data, (1, 2, 40, 50), (32, 32))[1] for data in kinds]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_memory_that_compiled_code_would_misread_is_refused() -> None:
    decoder, out = CropDecoder(60, 60), np.zeros((1, 32, 32, 3), np.uint8)
    jpeg = encode(photograph(50, 60), interval=2)
    one, box, flip = np.array([jpeg.size // 2], np.uint64), np.array([[1, 2, 40, 50]]), np.zeros(1, np.bool_)
    for wrong in (jpeg.astype(np.int16), jpeg[::2], jpeg[:, None]):
        with pytest.raises(ValueError, match="data must be contiguous uint8"):
            decoder.decode_crops(wrong, np.zeros(1, np.uint64), one, box, flip, out)


def test_other_sources_are_other_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a change in one file would go on running another's old code."""
    before = kernel_cache._digest()
    for source in kernel_cache._PACKAGE.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(kernel_cache, "_PACKAGE", tmp_path)
    assert kernel_cache._digest() == before
    with (tmp_path / "entropy.py").open("a") as file:
        file.write("# changed\n")
    assert kernel_cache._digest() != before


@pytest.mark.slow
def test_processes_that_start_together_compile_once(jpeg_file: Path, tmp_path: Path) -> None:
    """Here, where there is no linker, so that LLVM loads what was compiled."""
    (tmp_path / "bin").mkdir()
    alone = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(tmp_path / "bin")}
    together = [start_crop(jpeg_file, **alone) for _ in range(3)]
    results = [process.communicate() for process in together]
    assert sum("compiling" in errors for _, errors in results) == 1
    assert {output.split()[0] for output, _ in results} == {str(expected_sum(jpeg_file))}
    assert {output.split()[1] for output, _ in results} == {"llvmlite"}


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_compiles_is_followed_by_another(jpeg_file: Path, tmp_path: Path) -> None:
    first = start_crop(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path))
    assert first.stderr is not None
    assert "compiling" in first.stderr.readline()
    first.kill()
    first.wait()
    output, errors = start_crop(jpeg_file, NUMBA_CACHE_DIR=str(tmp_path)).communicate()
    assert output.split()[:2] == [str(expected_sum(jpeg_file)), "neither"], errors
