"""The compiled inverse DCT is bit-identical to libjpeg's integer arithmetic in NumPy."""

import numpy as np
from numpy.typing import NDArray

from rebar.jpeg.kernels.idct import fill_block, inverse_dct
from rebar.jpeg.kernels.jit import kernel

U = np.uint64


@kernel
def _transform(blocks: NDArray[np.int16], quantization: NDArray[np.int16], out: NDArray[np.uint8]) -> None:
    for i in range(blocks.shape[0]):
        inverse_dct(U(blocks[i].ctypes.data), U(quantization.ctypes.data), U(out[i].ctypes.data), U(8))


@kernel
def _fill(level: int, out: NDArray[np.uint8], stride: int) -> None:
    fill_block(U(level), U(out.ctypes.data), U(stride))


def idct_1d(values: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """Transform along the first axis as Loeffler, Ligtenberg and Moschytz do: 13-bit constants, rounded shift."""
    c = {name: round(value * 8192) for name, value in CONSTANTS.items()}
    v = values
    z1 = (v[2] + v[6]) * c["0.541196100"]
    t2, t3 = z1 - v[6] * c["1.847759065"], z1 + v[2] * c["0.765366865"]
    t0, t1 = (v[0] + v[4]) << 13, (v[0] - v[4]) << 13
    evens = [t0 + t3, t1 + t2, t1 - t2, t0 - t3]
    o0, o1, o2, o3 = v[7], v[5], v[3], v[1]
    z1, z2, z3, z4 = o0 + o3, o1 + o2, o0 + o2, o1 + o3
    z5 = (z3 + z4) * c["1.175875602"]
    o0, o1 = o0 * c["0.298631336"], o1 * c["2.053119869"]
    o2, o3 = o2 * c["3.072711026"], o3 * c["1.501321110"]
    z1, z2 = -z1 * c["0.899976223"], -z2 * c["2.562915447"]
    z3, z4 = z5 - z3 * c["1.961570560"], z5 - z4 * c["0.390180644"]
    odds = [o3 + z1 + z4, o2 + z2 + z3, o1 + z2 + z4, o0 + z1 + z3]
    sums = [e + o for e, o in zip(evens, odds, strict=True)] + [
        e - o for e, o in zip(evens[::-1], odds[::-1], strict=True)
    ]
    return (np.stack(sums) + (1 << (shift - 1))) >> shift


NAMES = "0.298631336 0.390180644 0.541196100 0.765366865 0.899976223 1.175875602 1.501321110 1.847759065"
CONSTANTS = {name: float(name) for name in (NAMES + " 1.961570560 2.053119869 2.562915447 3.072711026").split()}


def reference_inverse_dct(block: NDArray[np.int16], quantization: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return ``[8, 8]`` samples of 64 coefficients: columns first, then rows."""
    values = block.reshape(8, 8).astype(np.int64) * quantization.reshape(8, 8)
    columns = idct_1d(values, 11)
    return np.clip(idct_1d(columns.T, 18).T + 128, 0, 255).astype(np.uint8)


def random_blocks(count: int) -> NDArray[np.int16]:
    rng = np.random.default_rng(0)
    spread = 200 / (1 + np.add.outer(np.arange(8), np.arange(8)).ravel()) ** 1.5
    blocks = np.rint(rng.laplace(0, 1, (count, 64)) * spread * rng.uniform(0, 1, (count, 1)))
    blocks[: count // 4, 1:] = 0
    return np.clip(blocks, -1023, 1023).astype(np.int16)


def test_inverse_dct_is_bit_exact_and_clears_coefficients() -> None:
    quantization = np.random.default_rng(1).integers(1, 8, 64).astype(np.int16)
    blocks = random_blocks(2000)
    expected = np.stack([reference_inverse_dct(block, quantization) for block in blocks])
    out = np.zeros((len(blocks), 8, 8), np.uint8)
    _transform(blocks, quantization, out)
    np.testing.assert_array_equal(out.transpose(0, 2, 1), expected)  # stored column by column
    assert not blocks.any()


def test_block_with_dc_only_is_constant() -> None:
    """The region decoder relies on this for blocks without AC coefficients."""
    steps = np.ones(64, np.int16)
    for dc in range(-1100, 1100):
        block = np.zeros(64, np.int16)
        block[0] = dc
        level = min(max(((dc + 4) >> 3) + 128, 0), 255)
        assert (reference_inverse_dct(block, steps) == level).all()
    memory = np.zeros((8, 40), np.uint8)
    _fill(201, memory, 40)
    assert (memory[:, :8] == 201).all()
    assert not memory[:, 8:].any()
