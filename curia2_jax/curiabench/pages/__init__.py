"""What a task page shows beside the scores: curves, classes, cases and label maps, from answers and images."""
