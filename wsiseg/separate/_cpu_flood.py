"""CPU kernels, second half: labels from markers (steps 7 to 10).

Components are flooded one by one in a small padded frame, so that the work stays in cache and needs no border tests. A frame is
cleared run by run after use: time and memory are proportional to the mask's area, not to the components' bounding boxes.

The state of a pixel is (level, steps): the lowest level over which a path from a marker can reach it, and the number of steps
on that level. A 32-bit word holds the level above ``STEP_BITS`` bits of steps, so comparing words compares states.

Sequential form of the fixed point: pixels leave the queue in ascending state, and extending a path never lowers its state, so
the first state that a pixel gets is its smallest. Each pixel is therefore written once, and when it leaves the queue the
neighbour with the smallest state already has its label.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit
from wsiseg.separate.params import DISTANCE_REACH_PX, MATERIAL_MAX

__all__ = ["Runs", "flood_shared", "limit_sizes", "paint_single"]

Int = Any  # an integer whose width numba chooses
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]

STEP_BITS = 18
STEP_LAST = (1 << STEP_BITS) - 1
LEVELS = 1 << 14
UNREACHED = (LEVELS - 1) << STEP_BITS
"""Added to a pixel's height: the pixel is in the mask and has no state yet. Larger than every state, as heights stay below
LEVELS - 1."""
OUTSIDE = 0xFFFFFFFF
"""Not in the mask."""


class Runs(NamedTuple):
    """The mask: run r covers ``rx0[r] <= x < rx1[r]`` of row ``ry[r]`` in the component whose first run is ``root[r]``.

    ``component`` is the root under each marker.
    """

    ry: I32
    rx0: I32
    rx1: I32
    root: I32
    component: I32


@jit
def owners(component: I32, n_runs: Int) -> I32:
    """Return for each root the label of its only marker, 0 without one, -1 with several."""
    out = np.zeros(n_runs, np.int32)
    for k in range(component.size):
        c = component[k]
        out[c] = k + 1 if out[c] == 0 else -1
    return out


@jit
def paint_runs(labels: I32, ry: I32, rx0: I32, rx1: I32, root: I32, owner: I32) -> None:
    """Write a marker's label to every run of a component with one marker."""
    for r in range(root.size):
        k = owner[root[r]]
        if k > 0:
            row = labels[ry[r]]
            for x in range(rx0[r], rx1[r]):
                row[x] = k


def paint_single(labels: I32, runs: Runs) -> None:
    """Label the components that have one marker, which need no flood."""
    paint_runs(labels, runs.ry, runs.rx0, runs.rx1, runs.root, owners(runs.component, runs.root.size))


@jit
def group(keys: I32, slot: I32, n_slots: Int) -> tuple[I64, I64]:
    """Return the indices of ``keys`` whose slot is >= 0, slot by slot in order, and where each slot starts."""
    start = np.zeros(n_slots + 1, np.int64)
    for i in range(keys.size):
        s = slot[keys[i]]
        if s >= 0:
            start[s + 1] += 1
    for s in range(n_slots):
        start[s + 1] += start[s]
    fill = start[:-1].copy()
    members = np.empty(start[n_slots], np.int64)
    for i in range(keys.size):
        s = slot[keys[i]]
        if s >= 0:
            members[fill[s]] = i
            fill[s] += 1
    return members, start


@jit
def distance_term(markers: I64, table: U16, out: U16) -> None:
    """Fill ``out`` with the entry of ``table`` for each pixel's squared distance to the nearest marker.

    The table never decreases with distance, so the smallest entry over all markers is that of the nearest: the square of table
    entries around each marker is combined by minimum, and no distances are stored.
    """
    H, W = out.shape
    R = DISTANCE_REACH_PX
    out[:] = table[R * R]
    stamp = np.empty((2 * R, 2 * R), np.uint16)  # -R to R - 1: at R the table already has its last value
    for dy in range(2 * R):
        for dx in range(2 * R):
            stamp[dy, dx] = table[min(R * R, (dy - R) * (dy - R) + (dx - R) * (dx - R))]
    for i in range(markers.size):
        my, mx = markers[i] // W, markers[i] % W
        x0, x1 = max(0, mx - R), min(W, mx + R)
        for y in range(max(0, my - R), min(H, my + R)):
            row = out[y, x0:x1]
            line = stamp[y - my + R, x0 - mx + R : x1 - mx + R]
            for x in range(row.size):
                row[x] = min(row[x], line[x])


@jit
def flood_frame(state: U32, label: I32, following: I32, head: I32, order: I32, pitch: Int, n_seeds: Int, level: Int) -> None:
    """Flood one component in its frame: buckets by level, and within a level breadth first.

    ``head[level]`` starts the linked list of pixels that enter at that level with 0 steps; the seeds are already in.
    """
    waiting = n_seeds  # pixels in the lists of ``head``
    done = 0  # ``order[done:tail]``: pixels of this level that are not yet processed
    tail = 0
    while waiting > 0:
        while head[level] < 0:
            level += 1
        i = head[level]
        head[level] = -1
        while i >= 0:  # move the list of this level to ``order``
            order[tail] = i
            tail += 1
            waiting -= 1
            i = following[i]
        while done < tail:
            i = order[done]
            done += 1
            s = np.int64(state[i])
            a, b = np.int64(state[i - pitch]), np.int64(state[i - 1])
            c, d = np.int64(state[i + 1]), np.int64(state[i + pitch])
            if label[i] == 0:  # take the label of the neighbour with the smallest state; a tie goes up, left, right, down
                least, source = a, i - pitch
                if b < least:
                    least, source = b, i - 1
                if c < least:
                    least, source = c, i + 1
                if d < least:
                    source = i + pitch
                label[i] = label[source]
            # give a state to each neighbour without one: a higher pixel starts its own level with 0 steps and waits in that
            # list; a pixel at or below this level continues it with one more step
            for j, t in ((i - pitch, a), (i - 1, b), (i + 1, c), (i + pitch, d)):
                if t < UNREACHED or t == OUTSIDE:
                    continue
                f = t - UNREACHED  # the height of pixel j
                if f > level:
                    state[j] = f << STEP_BITS
                    following[j] = head[f]
                    head[f] = j
                    waiting += 1
                elif s & STEP_LAST != STEP_LAST:  # else the steps would overflow into the level
                    state[j] = s + 1
                    order[tail] = j
                    tail += 1


@jit
def frame_sizes(members: I64, start: I64, ry: I32, rx0: I32, rx1: I32) -> tuple[I64, I64]:
    """Return for each component its frame (y0, x0, height, width with a border of 1) and its area."""
    n = start.size - 1
    frame = np.empty((n, 4), np.int64)
    area = np.zeros(n, np.int64)
    for s in range(n):
        first, last = members[start[s]], members[start[s + 1] - 1]
        x0, x1 = rx0[first], rx1[first]
        for m in range(start[s], start[s + 1]):
            r = members[m]
            x0 = min(x0, rx0[r])
            x1 = max(x1, rx1[r])
            area[s] += rx1[r] - rx0[r]
        frame[s, 0], frame[s, 1] = ry[first] - 1, x0 - 1
        frame[s, 2], frame[s, 3] = ry[last] - ry[first] + 3, x1 - x0 + 2
    return frame, area


@jit
def fill_frame(state: U32, frame: I64, runs: I64, ry: I32, rx0: I32, rx1: I32, m16: U16, far: U16) -> None:
    """Write the landscape of a component's runs into its frame."""
    for r in runs:
        y, x0 = ry[r], rx0[r]
        o = (y - frame[0]) * frame[3] + x0 - frame[1]
        here = state[o : o + rx1[r] - x0]
        m = m16[y, x0 : rx1[r]]
        d = far[y, x0 : rx1[r]]
        for k in range(here.size):
            here[k] = np.uint32(UNREACHED + MATERIAL_MAX + d[k] - m[k])


@jit
def empty_frame(labels: I32, state: U32, label: I32, frame: I64, runs: I64, ry: I32, rx0: I32, rx1: I32) -> None:
    """Copy a component's labels to the window and clear its frame for the next component."""
    for r in runs:
        y, x0 = ry[r], rx0[r]
        o = (y - frame[0]) * frame[3] + x0 - frame[1]
        row = labels[y, x0 : rx1[r]]
        here, height = label[o : o + row.size], state[o : o + row.size]
        for k in range(row.size):
            row[k] = here[k]
        for k in range(row.size):
            here[k] = 0
        for k in range(row.size):
            height[k] = OUTSIDE


@jit
def flood_all(
    labels: I32, m16: U16, far: U16, markers: I64, ry: I32, rx0: I32, rx1: I32, root: I32, component: I32, owner: I32
) -> None:
    """Flood every component with several markers."""
    W = labels.shape[1]
    slot = np.full(root.size, -1, np.int32)
    n_slots = 0
    for r in range(root.size):
        if owner[r] < 0:
            slot[r] = n_slots
            n_slots += 1
    if n_slots == 0:
        return
    members, start = group(root, slot, n_slots)
    seeds, seed_start = group(component, slot, n_slots)
    frame, area = frame_sizes(members, start, ry, rx0, rx1)
    frame_px = (frame[:, 2] * frame[:, 3]).max()  # one buffer, large enough for every component
    state = np.full(frame_px, OUTSIDE, np.uint32)
    label = np.zeros(frame_px, np.int32)
    following = np.empty(frame_px, np.int32)
    order = np.empty(area.max(), np.int32)
    head = np.full(LEVELS, -1, np.int32)
    for s in range(n_slots):
        runs = members[start[s] : start[s + 1]]
        fill_frame(state, frame[s], runs, ry, rx0, rx1, m16, far)
        pitch = frame[s, 3]
        lowest: Int = LEVELS
        for k in seeds[seed_start[s] : seed_start[s + 1]]:
            o = (markers[k] // W - frame[s, 0]) * pitch + markers[k] % W - frame[s, 1]
            f = np.int64(state[o]) - UNREACHED
            state[o] = f << STEP_BITS
            label[o] = k + 1
            following[o] = head[f]
            head[f] = o
            lowest = min(lowest, f)
        flood_frame(state, label, following, head, order, pitch, seed_start[s + 1] - seed_start[s], lowest)
        empty_frame(labels, state, label, frame[s], runs, ry, rx0, rx1)


def flood_shared(labels: I32, m16: U16, markers: I64, runs: Runs, table: U16) -> None:
    """Label the components with several markers (steps 7 to 9)."""
    owner = owners(runs.component, runs.root.size)
    if not (owner < 0).any():
        return
    far = np.zeros(labels.shape, np.uint16)
    if table[-1]:
        distance_term(markers, table, far)
    flood_all(labels, m16, far, markers, runs.ry, runs.rx0, runs.rx1, runs.root, runs.component, owner)


@jit
def extents(labels: I32, material: U8, n: Int, ry: I32, rx0: I32, rx1: I32) -> tuple[I64, I64, I32]:
    """Return area and sum of material (n + 1,), and bounding box (y0, x0, y1, x1), half-open, (n + 1, 4) of every label."""
    area = np.zeros(n + 1, np.int64)
    total = np.zeros(n + 1, np.int64)
    box = np.zeros((n + 1, 4), np.int32)
    box[:, :2] = 2**31 - 1
    for r in range(ry.size):
        y = ry[r]
        row = labels[y]
        here = material[y]
        x = rx0[r]
        while x < rx1[r]:
            k = row[x]
            begin = x
            part: Int = 0
            while x < rx1[r] and row[x] == k:
                part += here[x]
                x += 1
            area[k] += x - begin
            total[k] += part
            box[k, 0] = min(box[k, 0], y)
            box[k, 1] = min(box[k, 1], begin)
            box[k, 2] = max(box[k, 2], y + 1)
            box[k, 3] = max(box[k, 3], x)
    return area, total, box


@jit
def filled_area(labels: I32, k: Int, y0: Int, x0: Int) -> Int:
    """Return the area inside the outer crack ring of label ``k`` whose first pixel in raster order is (y0, x0)."""
    H, W = labels.shape
    # Walk the ring along pixel edges, headings 0 to 3 for east, south, west, north, with the label on the right-hand side. The
    # area is the sum of x over edges going south minus edges going north (shoelace formula).
    y, x, heading, total = y0, x0, 0, 0
    while True:
        if heading == 0:
            x += 1
        elif heading == 1:
            y += 1
            total += x
        elif heading == 2:
            x -= 1
        else:
            y -= 1
            total -= x
        right_y, right_x = y - (heading >= 2), x - (heading == 1 or heading == 2)
        left_y, left_x = y - (heading == 0 or heading == 3), x - (heading >= 2)
        if 0 <= left_y < H and 0 <= left_x < W and labels[left_y, left_x] == k:
            heading = (heading + 3) & 3  # turn left: the pixel ahead on the left belongs to the label
        elif not (0 <= right_y < H and 0 <= right_x < W and labels[right_y, right_x] == k):
            heading = (heading + 1) & 3  # turn right: no pixel of the label is ahead
        if y == y0 and x == x0 and heading == 0:
            return total


@jit
def within_limits(
    labels: I32, area: I64, total: I64, box: I32, min_area: Int, max_area: Int, min_material: Int
) -> npt.NDArray[np.bool_]:
    """Return for labels 1..n whether their hole-filled area and their mean material are within the limits (step 10).

    The ring is traced only if the label's pixel count and its bounding box do not decide.
    """
    keep = np.zeros(area.size - 1, np.bool_)
    for k in range(1, area.size):
        if area[k] == 0 or area[k] > max_area or 16 * total[k] < min_material * area[k]:
            continue
        y0, x0 = np.int64(box[k, 0]), np.int64(box[k, 1])
        bound = (box[k, 2] - y0) * (box[k, 3] - x0)
        if bound < min_area:
            continue
        filled = area[k]
        if bound > max_area or filled < min_area:
            while labels[y0, x0] != k:
                x0 += 1
            filled = filled_area(labels, k, y0, x0)
        keep[k - 1] = min_area <= filled <= max_area
    return keep


@jit
def renumber(labels: I32, to: I32, ry: I32, rx0: I32, rx1: I32) -> None:
    """Replace label k by ``to[k]`` over the mask."""
    for r in range(ry.size):
        row = labels[ry[r]]
        for x in range(rx0[r], rx1[r]):
            row[x] = to[row[x]]


def limit_sizes(
    labels: I32, material: U8, n: Int, runs: Runs, min_area: Int, max_area: Int, min_material: Int
) -> npt.NDArray[np.bool_]:
    """Drop labels outside the limits and renumber the others 1..N in place; return which of the n labels are kept."""
    area, total, box = extents(labels, material, n, runs.ry, runs.rx0, runs.rx1)
    keep = within_limits(labels, area, total, box, min_area, max_area, min_material)
    if not keep.all():
        to = np.zeros(n + 1, np.int32)
        to[1:] = np.where(keep, np.cumsum(keep), 0)
        renumber(labels, to, runs.ry, runs.rx0, runs.rx1)
    return keep
