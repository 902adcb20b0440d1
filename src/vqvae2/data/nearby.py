"""A shuffle that reads images which are stored near each other at about the same time, for data on slow or distant storage.

    stored order --blocks, permuted--> sequence of an epoch --cut into lanes--> windows of each lane, permuted

Blocks stand for shards, windows for the bounded shuffle buffer of streaming readers. But the order is a function of the
seed and of the place alone: a training resumes at the right image after a kill, on any number of processes.

Each global batch takes equally many images from every lane, one lane after the other, so a process reads from some lanes
only. A lane has n // lanes images of an epoch. No image comes twice in an epoch; n % lanes images are left out of it,
others in every epoch.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

_LANES = 64  # at most; also the most processes that read different stretches of the data (our decision)
_BLOCKS = 8  # blocks in a window, so that a window mixes images from several places (our decision)


class NearbyShuffle:
    """The endless sequence of indices, by place, as `data.batches.Shuffle` is.

    Args:
        indices: in the order in which the images are stored.
        seed: of the permutations.
        batch: images of a global batch.
        buffer: images of a window, at least 1.

    Attributes:
        lanes: the largest divisor of `batch` that is at most 64 and at most the number of indices.
    """

    def __init__(self, indices: NDArray[np.int64], seed: int, batch: int, buffer: int) -> None:
        most = min(_LANES, len(indices))
        self.lanes = max(count for count in range(1, most + 1) if batch % count == 0)
        self.indices, self.seed, self.batch, self.buffer = indices, seed, batch, buffer
        self.length = len(indices) // self.lanes  # images of one lane in an epoch
        self.block = max(1, buffer // _BLOCKS)
        self._kept: OrderedDict[tuple[int, ...], NDArray[np.int64]] = OrderedDict()

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices that stand at these positions of the sequence."""
        each = self.batch // self.lanes
        step, slot = np.divmod(positions, self.batch)
        lane = slot // each
        epoch, within = np.divmod(step * each + slot % each, self.length)
        window = within // self.buffer
        chosen = np.empty(len(positions), np.int64)
        keys = np.stack([epoch, lane, window], 1)
        for key in np.unique(keys, axis=0):
            here = (keys == key).all(1)
            e, own_lane, own_window = key.tolist()
            start = own_window * self.buffer
            order = self._permutation(min(self.buffer, self.length - start), 1, e, own_lane, own_window)
            mixed = own_lane * self.length + start + order[within[here] - start]
            chosen[here] = self.indices[self._stored(e, mixed)]
        return chosen

    def _stored(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the images at these positions of an epoch's sequence of blocks are stored; the last block may be shorter."""
        count = -(-len(self.indices) // self.block)
        order = self._permutation(count, 0, epoch)
        ends = self._ends(epoch, order)
        block = np.searchsorted(ends, positions, side="right")
        begin = np.where(block > 0, ends[block - 1], 0)
        return order[block] * self.block + positions - begin

    def _ends(self, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        key = (2, epoch)
        if key not in self._kept:
            self._keep(key, np.cumsum(np.minimum(self.block, len(self.indices) - order * self.block)))
        return self._kept[key]

    def _permutation(self, count: int, *key: int) -> NDArray[np.int64]:
        if key not in self._kept:
            self._keep(key, np.random.default_rng((self.seed, *key)).permutation(count))
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple[int, ...], value: NDArray[np.int64]) -> None:
        self._kept[key] = value
        while len(self._kept) > 2 * self.lanes + 8:
            self._kept.popitem(last=False)
