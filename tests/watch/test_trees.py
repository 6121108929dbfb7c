"""Each watched process tree has one bit, which is reused after the tree is no longer watched."""

import pytest

from portwatch.errors import PortwatchError
from portwatch.linux.lineage import Identity
from portwatch.watch.trees import TREES_MAX, TreeBits


def test_a_tree_keeps_its_bit_until_its_last_user_releases_it():
    bits = TreeBits()
    first, second, third = Identity(1, 1), Identity(2, 2), Identity(3, 3)
    assert (bits.acquire(first), bits.acquire(second), bits.acquire(first)) == (
        (1, True),
        (2, True),
        (1, False),
    )
    assert (bits.release(first), bits.release(first)) == ((1, False), (1, True))
    assert bits.acquire(third) == (4, True)


def test_the_bit_that_was_released_longest_ago_is_used_next():
    bits = TreeBits()
    trees = [Identity(pid, 1) for pid in range(1, TREES_MAX + 2)]
    for tree in trees[:TREES_MAX]:
        bits.acquire(tree)
    bits.release(trees[5])
    bits.release(trees[3])
    assert bits.acquire(trees[TREES_MAX]) == (1 << 5, True)


def test_watching_more_trees_than_there_are_bits_is_an_error():
    bits = TreeBits()
    for pid in range(1, TREES_MAX + 1):
        bits.acquire(Identity(pid, 1))
    with pytest.raises(PortwatchError, match=f"{TREES_MAX} watched process trees"):
        bits.acquire(Identity(TREES_MAX + 1, 1))
