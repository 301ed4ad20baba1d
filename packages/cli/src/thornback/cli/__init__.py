"""Armoured execution on Ray: the command line."""
