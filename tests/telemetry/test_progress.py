"""The printed line of a run."""

import pytest

from curia2_jax.telemetry.progress import Progress


@pytest.mark.parametrize(("scalars", "nats"), [({"nats/dino": 0.384}, "  nats 0.38"), ({}, "")])
def test_a_line_says_what_is_learned(scalars, nats):
    """Where there is a DINO term, whose nats they are."""
    line = Progress(300, 32, 10).line(
        {"loss": 7.38054} | scalars, {"images_per_s": 22.06, "data_wait": 0.02, "eta_s": 420}
    )
    assert line == f"step 10/300  loss 7.3805{nats}  22.1 img/s  data wait 2%  ETA 7 min 00 s  checkpoint age none"
