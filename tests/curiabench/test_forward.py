"""What goes on beside the model: parts are made ready before they are asked for, in their order."""

import pytest

from curia2_jax.curiabench import forward


def test_items_are_taken_ahead_in_their_order():
    taken = []

    def items(stop):
        for number in range(20):
            if number == stop:
                raise ValueError("broken")
            taken.append(number)
            yield number

    assert list(forward._ahead(items(None), 4)) == list(range(20))
    found = []
    with pytest.raises(ValueError, match="broken"):
        found.extend(forward._ahead(items(7), 4))  # what came before it is not lost
    assert found == list(range(7))
    taken.clear()
    some = forward._ahead(items(None), 4)
    next(some)
    some.close()
    assert len(taken) <= 1 + 4 + 1
