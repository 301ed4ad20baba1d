"""Run the ranks of a job: executed at least once, recorded exactly once."""
