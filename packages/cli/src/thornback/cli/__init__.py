"""Armoured execution on Ray: the command line (`thornback`, `python -m thornback.cli`).

A program, not a library: nothing is re-exported here, so that rank processes of the demo, which
import modules below this package, start without the display and tracing libraries.
"""
