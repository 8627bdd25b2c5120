"""What is printed of reports that are there already."""

from curia2_jax.curiabench import protocol, tables


def report(gain):
    """Every score 0.5, the trained row `gain` better; intervals of +-0.1."""
    (scoring,) = protocol.SCORINGS
    baselines = [protocol.RANDOM, protocol.PIXELS]

    def table(rows, value):
        score = [value, value - 0.1, value + 0.1]
        return {row.name: {h.name: {m.name: score for m in scoring.metrics} for h in scoring.heads} for row in rows}

    rows = table([protocol.TRAINED], 0.5 + gain) | table(baselines, 0.5)
    mean = {"rows": rows, "trained_minus": table(baselines, gain)}
    return {"settings": {}, "mean": mean, "verdict": "One sentence."}


def test_evidence_counts_the_seeds_whose_whole_interval_is_above_random(capsys):
    """Two of three: the third interval reaches below zero."""
    tables.print_evidence([report(0.25), report(0.05), report(0.125)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["seed", "trained", "random", "pixels", "trained", "-", "random"]
    assert lines[3].split() == ["linear", "probe", "0", "0.750", "0.500", "0.500", "+0.250", "[+0.150,", "+0.350]"]
    assert [line for line in lines if "whole interval" in line] == [
        f"{name}: above random weights with the whole interval in 2 of 3 seeds" for name in ("linear probe", "kNN")
    ]
