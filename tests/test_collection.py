import gc
import weakref

import pytest

from lorafit.collection import collection_of_new, collection_paused


def test_paused_inside_and_as_before_afterwards():
    assert gc.isenabled()
    with pytest.raises(ValueError), collection_paused():
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_what_was_made_inside_is_old_and_can_still_be_collected():
    class Cycle:
        def __init__(self):
            self.own = self

    with collection_paused():
        gone = weakref.ref(Cycle())
        young = Cycle()
    assert not any(one is young for one in gc.get_objects(generation=0)) and gc.get_freeze_count() == 0
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_what_the_caller_froze_stays_frozen():
    own = [object()]
    gc.freeze()
    try:
        with collection_paused():
            pass
        assert not any(one is own for one in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(one is own for one in gc.get_objects())


def test_the_search_passes_over_what_was_there_before():
    class Cycle:
        def __init__(self):
            self.own = self

    before = weakref.ref(Cycle())
    with collection_of_new():
        with collection_of_new():
            new = weakref.ref(Cycle())
        gc.collect()
        assert before() is not None and new() is None
        with collection_paused():
            read = Cycle()
        assert not any(one is read for one in gc.get_objects())
    gc.collect()
    assert before() is None and gc.get_freeze_count() == 0
