"""Scores of reports as text on a terminal."""

from curia2_jax.curiabench import protocol, results


def print_evidence(reports: list[results.Results]) -> None:
    """The primary metric of every seed, and how often the trained backbone is above the one with random weights."""
    scoring = protocol.scoring_behind(reports[0])
    metric, baseline = scoring.primary.metric, protocol.RANDOM
    print(f"\n{metric.phrase}, mean of the tasks; the difference with its 95 % interval over patients")
    rows = [row for row in protocol.ROWS if all(row.name in report["mean"]["rows"] for report in reports)]
    names = "".join(f"{row.name:<15}" for row in rows)
    print(f"{'':<14}{'seed':<6}{names}{protocol.TRAINED.name} - {baseline.name}")
    for head in scoring.heads:
        wins = 0
        for seed, report in enumerate(reports):
            mean = report["mean"]
            difference = results.defined(mean["trained_minus"][baseline.name][head.name][metric.name])
            wins += difference[1] > 0
            values = (results.defined(mean["rows"][row.name][head.name][metric.name])[0] for row in rows)
            cells = "".join(f"{score:<15.3f}" for score in values)
            print(f"{head.short:<14}{seed:<6}{cells}{difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}]")
        print(f"{head.short}: above random weights with the whole interval in {wins} of {len(reports)} seeds\n")
