"""Puts the client libraries into the same situations, and compares their answers."""
