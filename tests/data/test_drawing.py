import numpy as np
import pytest

from lora_pl.data.drawing import stratified_order

CLASSES = np.repeat([0, 1, 2, 3], [50, 30, 7, 1]).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_stretch_has_the_classes_shares_to_less_than_two_sentences(seed):
    order = stratified_order(CLASSES, seed)
    assert sorted(order) == list(range(len(CLASSES)))
    shares = np.bincount(CLASSES.astype(int)) / len(CLASSES)
    for start in range(len(order)):
        for end in range(start + 1, len(order) + 1):
            found = np.bincount(CLASSES[order[start:end]].astype(int), minlength=4)
            assert abs(found - shares * (end - start)).max() < 2


def test_the_seed_decides():
    assert (stratified_order(CLASSES, 1) == stratified_order(CLASSES, 1)).all()
    assert (stratified_order(CLASSES, 1) != stratified_order(CLASSES, 2)).any()
