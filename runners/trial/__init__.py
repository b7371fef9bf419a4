"""The child process of a trial: loop, measurement, evaluation, report."""
