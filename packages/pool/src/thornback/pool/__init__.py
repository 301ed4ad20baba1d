"""Keep workers alive and hand them ranks."""
