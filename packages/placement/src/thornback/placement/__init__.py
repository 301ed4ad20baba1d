"""Lease gangs of resources, and never leak them."""
