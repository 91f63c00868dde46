"""The tiny model that several modules sample from."""

from __future__ import annotations

from typing import Any

import pytest
from sampled import small


@pytest.fixture(scope="module")
def model() -> Any:
    return small().eval()
