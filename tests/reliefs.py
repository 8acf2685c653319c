"""Made-up reliefs on a plane grid."""

import numpy as np

CELL = 1000.0


def flat_steps(shape, cell=CELL):
    """Rows southward and columns eastward, ``cell`` m apart."""
    steps = np.zeros((2, 2, *shape))
    steps[0, 1], steps[1, 0] = -cell, cell
    return steps


def places(shape):
    """Distance in m toward east and north of the first cell."""
    rows, columns = np.indices(shape)
    return columns * CELL, -rows * CELL
