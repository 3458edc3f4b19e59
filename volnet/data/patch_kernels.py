"""The loops of samplers and augmentation, compiled by numba: one thread each, without the GIL.

They are called from the threads of :class:`volnet.data.PatchLoader`, a patch a thread, and write where they
are told. Random numbers are a function of a key and a voxel's position, so they do not depend on who computes
them, nor on where the vectors of the machine begin.
"""

from __future__ import annotations

import numba
import numpy as np

_compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
_inlined = numba.njit(nogil=True, cache=True, inline="always", error_model="numpy", fastmath={"contract"})

# Literals are float64 and int64 to numba: what should fill vectors of 32-bit lanes names its types.
_F = np.float32
_U = np.uint32

BLOCK = 32
"""Voxels along an axis of a block of the index: 2,048 blocks for 512x512x256 voxels."""


@_compiled
def _copy_row(source, at, step, row):  # type: ignore[no-untyped-def]
    width = row.size
    # Slices: numba would look at every index for a negative one.
    if step == 1:
        run = source[at : at + width]
        for k in range(width):
            row[k] = run[k]
    elif step == -1:
        run = source[at - width + 1 : at + 1]
        for k in range(width):
            row[width - 1 - k] = run[k]
    else:
        for k in range(width):
            row[k] = source[at + k * step]


@_compiled
def copy_strided(source, base, step_d, step_h, step_w, out):  # type: ignore[no-untyped-def]
    """out[i, j, k] = source[base + i * step_d + j * step_h + k * step_w]; [N] to [D, H, W]."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            _copy_row(source, base + i * step_d + j * step_h, step_w, out[i, j])


@_compiled
def nearest(volume, matrix, offset, pad, out):  # type: ignore[no-untyped-def]
    """out[o] = volume[round(matrix @ o + offset)], `pad` outside; [D, H, W] of one type, volume dense.

    Along a row places are counted in 2**-32 voxels: additions and shifts, exact to a millionth of a voxel.
    """
    flat = volume.reshape(-1)
    shape, one = volume.shape, 4294967296.0
    width = out.shape[2]
    start = np.empty(3, np.int64)
    step = np.empty(3, np.int64)
    for axis in range(3):
        step[axis] = int(np.rint(matrix[axis, 2] * one))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            first, last = 0, width  # of the row, what lies inside
            for axis in range(3):
                at = matrix[axis, 0] * i + matrix[axis, 1] * j + offset[axis] + 0.5
                start[axis] = int(np.rint(at * one))
                along = step[axis]
                end = np.int64(shape[axis]) << 32
                if along == 0:
                    if start[axis] < 0 or start[axis] >= end:
                        last = 0
                elif along > 0:
                    first = max(first, -(start[axis] // along))
                    last = min(last, -((start[axis] - end) // along))
                else:
                    first = max(first, (start[axis] - end) // -along + 1)
                    last = min(last, start[axis] // -along + 1)
            last = max(last, 0)
            first = min(first, last)
            row = out[i, j]
            row[:first] = pad
            row[last:] = pad
            d = start[0] + first * step[0]
            h = start[1] + first * step[1]
            w = start[2] + first * step[2]
            for k in range(first, last):
                row[k] = flat[((d >> 32) * shape[1] + (h >> 32)) * shape[2] + (w >> 32)]
                d += step[0]
                h += step[1]
                w += step[2]


@_inlined
def _log(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a normal positive float32, to 6e-7."""
    bits = _F(x).view(np.int32)
    exponent = np.int32((bits - np.int32(0x3F3504F3)) >> np.int32(23))  # mantissa in [sqrt(1/2), sqrt(2))
    t = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32) - _F(1)
    z = t * t
    p = _F(0.114989690457)
    p = p * t - _F(0.183663052680)
    p = p * t + _F(0.204986647348)
    p = p * t - _F(0.249477458737)
    p = p * t + _F(0.333180450035)
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
def _normal_pair(i, key_a, key_b, minus_two_variances):  # type: ignore[no-untyped-def]
    """Two independent normal float32 (Box and Muller) for position i, to 1e-6 of the deviation.

    The radius comes from a hash, the angle from its multiple: the 2**32 pairs lie on a fine lattice, which
    the hash visits at random.
    """
    a = _hash(_U(i ^ key_a))
    b = _U((a ^ key_b) * _U(0x9E3779B1))
    uniform = _F(np.int32((a >> _U(1)) | _U(1)))  # of 0 to 2**31, and never 0
    # 31 ln 2 less; rounding must not leave more than 0 of the largest.
    logarithm = min(_log(uniform) - _F(21.487562597), _F(0))
    radius = np.sqrt(minus_two_variances * logarithm)
    turn = _F(np.int32(b)) * _F(2.0**-32)
    z = turn * turn
    sine = _F(32.768863678)
    sine = sine * z - _F(74.470954895)
    sine = sine * z + _F(81.365493774)
    sine = sine * z - _F(41.331123352)
    sine = sine * z + _F(6.283053875)
    cosine = _F(-21.071105957)
    cosine = cosine * z + _F(58.790496826)
    cosine = cosine * z - _F(85.271621704)
    cosine = cosine * z + _F(64.928657532)
    cosine = cosine * z - _F(19.738981247)
    cosine = cosine * z + _F(0.999999225)
    return radius * cosine, radius * turn * sine


@_compiled
def _finish_plane(x, number, change, keys):  # type: ignore[no-untyped-def]
    """A plane of float32 [N], the `number`-th of the patch, changed in place while it is in the cache.

    change: float32 scale, shift, clips (0 or 1), gamma, scale, shift, deviation:
    x * scale + shift; where it clips, to 0..1, to the power of gamma, * scale + shift; normal noise on top.
    """
    scale, shift, deviation = change[0], change[1], change[6]
    if change[2] != 0:
        for k in range(x.size):
            x[k] = min(max(x[k] * scale + shift, _F(0)), _F(1))
        if change[3] != 1:
            tiny = _F(1e-30)
            exponent = change[3] * _F(1.4426950409)
            for k in range(x.size):
                power = _exp2(max(exponent * _log(max(x[k], tiny)), _F(-125)))
                x[k] = power if x[k] > tiny else _F(0)
        scale, shift = change[4], change[5]
    if deviation != 0:
        half = (x.size + 1) // 2
        lower, upper = x[:half], x[half:]
        at = _U(number * half)
        key_a, key_b = keys[0], keys[1]
        variances = _F(-2) * deviation * deviation
        for k in range(upper.size):
            first, second = _normal_pair(_U(at + _U(k)), key_a, key_b, variances)
            lower[k] = lower[k] * scale + shift + first
            upper[k] = upper[k] * scale + shift + second
        if upper.size < half:
            first, second = _normal_pair(_U(at + _U(half - 1)), key_a, key_b, variances)
            lower[half - 1] = lower[half - 1] * scale + shift + first
    elif scale != 1 or shift != 0:
        for k in range(x.size):
            x[k] = x[k] * scale + shift


@_compiled
def finish(x, change, keys):  # type: ignore[no-untyped-def]
    """All planes of float32 [D, H, W], dense, changed in place as `_finish_plane` says."""
    for i in range(x.shape[0]):
        _finish_plane(x[i].reshape(-1), i, change, keys)


@_compiled
def copy_and_finish(source, base, step_d, step_h, step_w, out, change, keys):  # type: ignore[no-untyped-def]
    """`copy_strided` to float32, each plane finished before the next is copied."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            _copy_row(source, base + i * step_d + j * step_h, step_w, out[i, j])
        _finish_plane(out[i].reshape(-1), i, change, keys)


@_compiled
def extent(label, low, high):  # type: ignore[no-untyped-def]
    """The box [low, high) of what is not 0 in [D, H, W], to int64 [3] each; high is 0 where all is."""
    low[:] = np.array(label.shape)
    high[:] = 0
    for d in range(label.shape[0]):
        for h in range(label.shape[1]):
            row = label[d, h]
            some = np.uint8(0)
            for w in range(row.size):
                some = np.uint8(some | row[w])
            if some != 0:
                low[0], high[0] = min(low[0], d), d + 1
                low[1], high[1] = min(low[1], h), max(high[1], h + 1)
                for w in range(row.size):
                    if row[w] != 0:
                        low[2], high[2] = min(low[2], w), max(high[2], w + 1)


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
