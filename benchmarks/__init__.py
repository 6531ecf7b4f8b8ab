"""Measured claims: each prints its ratio against a named peer in the same run."""
