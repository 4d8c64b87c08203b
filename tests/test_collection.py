import gc

import pytest

from lorafit.collection import collection_paused


def test_paused_inside_and_as_before_afterwards():
    assert gc.isenabled()
    with pytest.raises(ValueError), collection_paused():
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
