"""Which stage or rank of a job may run next?"""
