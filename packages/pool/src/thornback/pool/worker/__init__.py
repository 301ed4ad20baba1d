"""A worker's side of the pool: the supervisor, its fork server and the rank processes.

Nothing of the driver's side is imported here. `supervisor` says how the parts lie in one another.
"""
