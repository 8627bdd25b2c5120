"""The smallest recipes that still have every part, and who stops a run of them."""

import contextlib
import functools

from configs import vitb


def tiny_config(**changes) -> dict:
    """A nested config of a two-block model on 32-pixel crops; `changes` are dotted keys with `__` for the dot."""
    c = vitb.get_config().to_dict()
    c["total_steps"] = 6
    c["data"].update(global_batch=8, group_size=4, canvas=72, num_threads=1, prefetch=2, max_corrupt_rate=0.5)
    c["crops"].update(global_size=32, local_size=16, num_local=2)
    c["model"].update(width=32, depth=2, heads=2, patch_size=8, layerscale=0.1, drop_path=0.3, dtype="float32")
    c["heads"].update(dino_prototypes=48, ibot_prototypes=40, dino_bottleneck=16, ibot_bottleneck=16, hidden=32)
    c["objective"]["chunk"], c["objective"]["sigreg"]["directions"] = 16, 32
    c["schedule"].update(warmup_steps=2, freeze_last_layer_steps=1, teacher_temp_warmup_steps=3)
    c["checkpoint"].update(every_steps=2, keep_every_steps=100)
    c["log"]["every_steps"] = 1
    c["probe"].update(every_steps=0, slices=16)
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = functools.reduce(dict.__getitem__, sections, c)
        assert name in section, key
        section[name] = value
    return c


class StopsWhen:
    """Asks to stop as soon as so many batches were sent."""

    def __init__(self, taken: list, batches: int):
        self.made = lambda: len(taken) >= batches

    def answered(self):
        return contextlib.nullcontext()
