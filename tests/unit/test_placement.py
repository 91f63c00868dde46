"""Where the reference model is, pass by pass.

A machine without a GPU has one device only, so the module notes where it is told to go.
"""

import logging

import pytest
import torch

from sera_plugin.runtime.memory import Placement, resting_place

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Noting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.places = []

    def to(self, place):
        self.places.append(place)
        return self


@pytest.mark.parametrize(
    ("wanted", "device", "why_not", "rest"),
    [
        ("auto", GPU, None, CPU),
        ("cpu", GPU, None, CPU),
        ("gpu", GPU, None, GPU),
        ("auto", GPU, "it is sharded", GPU),
        ("cpu", GPU, "it is sharded", GPU),
        ("auto", CPU, None, CPU),
    ],
)
def test_the_resting_place(wanted, device, why_not, rest, caplog):
    with caplog.at_level(logging.WARNING):
        assert resting_place(wanted, device, why_not) == rest
    said = "sera.reference_device: cpu has no effect: it is sharded." in caplog.text
    assert said == (wanted == "cpu" and why_not is not None)


def test_the_model_comes_for_passes_and_leaves_after_the_last_even_if_one_fails():
    model = Noting()
    placement = Placement(model, GPU, CPU)
    assert model.places == [CPU]
    with placement.at_work():
        assert model.places == [CPU, GPU]
        with placement.at_work():
            pass
        assert model.places == [CPU, GPU]
    assert model.places == [CPU, GPU, CPU]

    def fail():
        with placement.at_work():
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model.places == [CPU, GPU, CPU, GPU, CPU]


@pytest.mark.parametrize("place", [CPU, GPU])
def test_a_model_that_stays_is_never_moved(place):
    model = Noting()
    with Placement(model, place, place).at_work():
        pass
    assert model.places == []
