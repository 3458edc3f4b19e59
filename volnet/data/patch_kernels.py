"""The loops of samplers and augmentation, compiled by numba: one thread each, without the GIL.

They are called from the threads of :class:`volnet.data.PatchLoader`, a patch a thread, and write where they
are told. Random numbers are a function of a key and a voxel's position, so they do not depend on who computes
them, nor on where the vectors of the machine begin.
"""

from __future__ import annotations

import numba
import numpy as np

_compiled = numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
_inlined = numba.njit(nogil=True, cache=True, inline="always", error_model="numpy")

# Literals are float64 and int64 to numba: what should fill vectors of 32-bit lanes names its types.
_F = np.float32
_U = np.uint32

BLOCK = 32
"""Voxels along an axis of a block of the index: 2,048 blocks for 512x512x256 voxels."""


@_compiled
def copy_strided(source, base, step_d, step_h, step_w, out):  # type: ignore[no-untyped-def]
    """out[i, j, k] = source[base + i * step_d + j * step_h + k * step_w]; int16 [N] to float32 [D, H, W]."""
    depth, height, width = out.shape
    for i in range(depth):
        for j in range(height):
            at = base + i * step_d + j * step_h
            row = out[i, j]
            if step_w == 1:
                for k in range(width):
                    row[k] = source[at + k]
            elif step_w == -1:
                first = at - width + 1
                for k in range(width):
                    row[width - 1 - k] = source[first + k]
            else:
                for k in range(width):
                    row[k] = source[at + k * step_w]


@_compiled
def nearest(volume, matrix, offset, pad, out):  # type: ignore[no-untyped-def]
    """out[o] = volume[round(matrix @ o + offset)], `pad` outside; [D, H, W] of one type."""
    depth, height, width = volume.shape
    half = 0.5
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            start_d = matrix[0, 0] * i + matrix[0, 1] * j + offset[0] + half
            start_h = matrix[1, 0] * i + matrix[1, 1] * j + offset[1] + half
            start_w = matrix[2, 0] * i + matrix[2, 1] * j + offset[2] + half
            for k in range(out.shape[2]):
                d = start_d + matrix[0, 2] * k
                h = start_h + matrix[1, 2] * k
                w = start_w + matrix[2, 2] * k
                inside = d >= 0 and d < depth and h >= 0 and h < height and w >= 0 and w < width
                out[i, j, k] = volume[int(d), int(h), int(w)] if inside else pad


@_inlined
def _log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a normal positive float32, to 1e-7 (Cephes' logf without its special cases)."""
    bits = _F(x).view(np.int32)
    exponent = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))  # mantissa in [sqrt(1/2), sqrt(2))
    t = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32) - _F(1)
    z = t * t
    p = _F(7.0376836292e-2)
    p = p * t - _F(1.1514610310e-1)
    p = p * t + _F(1.1676998740e-1)
    p = p * t - _F(1.2420140846e-1)
    p = p * t + _F(1.4249322787e-1)
    p = p * t - _F(1.6668057665e-1)
    p = p * t + _F(2.0000714765e-1)
    p = p * t - _F(2.4999993993e-1)
    p = p * t + _F(3.3333331174e-1)
    return t + (p * t * z - _F(0.5) * z) + _F(exponent) * _F(0.69314718)


@_inlined
def _exp2(x):  # type: ignore[no-untyped-def]
    """2**x of a float32 above -126, to 1e-7 of the value (Cephes' exp2f)."""
    whole = np.floor(x + _F(0.5))
    t = x - whole
    p = _F(1.535336188319500e-4)
    p = p * t + _F(1.339887440266574e-3)
    p = p * t + _F(9.618437357674640e-3)
    p = p * t + _F(5.550332471162809e-2)
    p = p * t + _F(2.402264791363012e-1)
    p = p * t + _F(6.931472028550421e-1)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * t + _F(1)) * power


@_inlined
def _hash(x):  # type: ignore[no-untyped-def]
    """A bijection of uint32 in which every bit of the argument moves every bit of the result (lowbias32)."""
    x = _U(x ^ (x >> _U(16)))
    x = _U(x * _U(0x7FEB352D))
    x = _U(x ^ (x >> _U(15)))
    x = _U(x * _U(0x846CA68B))
    return _U(x ^ (x >> _U(16)))


@_inlined
def _normal_pair(i, key_a, key_b):  # type: ignore[no-untyped-def]
    """Two independent standard normal float32 (Box and Muller) for position i."""
    a = _hash(_U(i ^ key_a))
    b = _hash(_U(i ^ key_b))
    u = (_F(np.int32(a >> _U(8))) + _F(0.5)) * _F(2.0**-24)
    radius = np.sqrt(_F(-2) * _log(u))
    turn = _F(np.int32(b >> _U(8))) * _F(2.0**-22)  # in quarters of a turn
    whole = np.floor(turn + _F(0.5))
    quadrant = np.int32(whole)
    t = (turn - whole) * _F(1.5707963268)
    z = t * t
    sine = t + t * z * ((_F(-1.9515295891e-4) * z + _F(8.3321608736e-3)) * z - _F(1.6666654611e-1))
    cosine = (
        z * z * ((_F(2.443315711809948e-5) * z - _F(1.388731625493765e-3)) * z + _F(4.166664568298827e-2))
        - _F(0.5) * z
        + _F(1)
    )
    swap = (quadrant & np.int32(1)) != 0
    first = sine if swap else cosine
    second = cosine if swap else sine
    first = -first if ((quadrant + np.int32(1)) & np.int32(2)) != 0 else first
    second = -second if (quadrant & np.int32(2)) != 0 else second
    return radius * first, radius * second


@_compiled
def scale_shift(x, scale, shift):  # type: ignore[no-untyped-def]
    """x = x * scale + shift in place; float32 [N]."""
    for i in range(x.size):
        x[i] = x[i] * scale + shift


@_compiled
def add_noise(x, scale, shift, deviation, key_a, key_b):  # type: ignore[no-untyped-def]
    """x = x * scale + shift + deviation * normal in place; float32 [N], fewer than 2**32."""
    half = (x.size + 1) // 2
    lower, upper = x[:half], x[half:]
    for i in range(upper.size):
        first, second = _normal_pair(_U(i), key_a, key_b)
        lower[i] = lower[i] * scale + shift + deviation * first
        upper[i] = upper[i] * scale + shift + deviation * second
    if upper.size < half:
        first, second = _normal_pair(_U(half - 1), key_a, key_b)
        lower[half - 1] = lower[half - 1] * scale + shift + deviation * first


@_compiled
def clip_power(x, scale, shift, gamma):  # type: ignore[no-untyped-def]
    """x = clip(x * scale + shift, 0, 1) ** gamma in place; float32 [N]."""
    log2_of_e = _F(1.4426950409)
    exponent = gamma * log2_of_e
    tiny = _F(1e-30)
    for i in range(x.size):
        value = min(max(x[i] * scale + shift, _F(0)), _F(1))
        power = _exp2(max(exponent * _log(max(value, tiny)), _F(-125)))
        x[i] = power if value > tiny else _F(0)


@_compiled
def clip(x, scale, shift):  # type: ignore[no-untyped-def]
    """x = clip(x * scale + shift, 0, 1) in place; float32 [N]."""
    for i in range(x.size):
        x[i] = min(max(x[i] * scale + shift, _F(0)), _F(1))


@_compiled
def count_blocks(label, counts):  # type: ignore[no-untyped-def]
    """How many voxels of each block are not 0: [D, H, W] to int64 [BD, BH, BW], zeros at first."""
    for d in range(label.shape[0]):
        for h in range(label.shape[1]):
            row = label[d, h]
            for block in range(counts.shape[2]):
                count = 0
                for w in range(block * BLOCK, min((block + 1) * BLOCK, label.shape[2])):
                    count += row[w] != 0
                counts[d // BLOCK, h // BLOCK, block] += count


@_compiled
def find_in_block(block, rank, positive, where):  # type: ignore[no-untyped-def]
    """The place of the voxel, of those that are not 0 (or those that are), that `rank` others precede."""
    seen = 0
    for d in range(block.shape[0]):
        for h in range(block.shape[1]):
            for w in range(block.shape[2]):
                if (block[d, h, w] != 0) == positive:
                    if seen == rank:
                        where[0], where[1], where[2] = d, h, w
                        return
                    seen += 1


@_compiled
def sum_blocks(weights, sums):  # type: ignore[no-untyped-def]
    """The sum of each block, to float64 [BD, BH, BW], zeros at first; the least weight is returned."""
    least = np.inf
    for d in range(weights.shape[0]):
        for h in range(weights.shape[1]):
            for block in range(sums.shape[2]):
                total = 0.0
                for w in range(block * BLOCK, min((block + 1) * BLOCK, weights.shape[2])):
                    weight = float(weights[d, h, w])
                    total += weight
                    if not weight >= least:
                        least = weight
                sums[d // BLOCK, h // BLOCK, block] += total
    return least


@_compiled
def find_weight(block, share, where):  # type: ignore[no-untyped-def]
    """The first place at which the running sum of the weights exceeds `share` of their sum."""
    total = 0.0
    for d in range(block.shape[0]):
        for h in range(block.shape[1]):
            for w in range(block.shape[2]):
                total += float(block[d, h, w])
    running = 0.0
    for d in range(block.shape[0]):
        for h in range(block.shape[1]):
            for w in range(block.shape[2]):
                weight = float(block[d, h, w])
                running += weight
                if weight > 0:
                    where[0], where[1], where[2] = d, h, w
                    if running > share * total:
                        return
