"""A column reads like a tuple and is an array to NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from resin.column import Column


def test_reads_like_a_tuple():
    column = Column([1.0, 2.5, -3.0])
    assert (len(column), column[0], column[-1], tuple(column)) == (3, 1.0, -3.0, (1.0, 2.5, -3.0))
    assert column[1:] == (2.5, -3.0)
    assert column == (1.0, 2.5, -3.0) and column == (1.0, 2.5, -3.0)
    assert column == Column((1.0, 2.5, -3.0)) and column != Column((1.0, 2.5)) and column != "text"
    assert hash(column) == hash((1.0, 2.5, -3.0))
    assert repr(column) == "(1.0, 2.5, -3.0)"


def test_is_an_array_without_a_copy_and_cannot_be_changed():
    source = np.arange(4.0)
    column = Column(source)
    assert np.shares_memory(np.asarray(column), source)
    assert np.asarray(column, dtype=np.int64).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(column)[0] = 7.0
    with pytest.raises(ValueError, match="one dimension, got shape"):
        Column([[1.0]])
