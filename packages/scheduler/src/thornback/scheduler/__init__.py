"""The decisions of a fault-tolerant run: events in, commands out, no I/O."""
