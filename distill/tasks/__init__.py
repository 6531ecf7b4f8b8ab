"""Evaluation tasks: definitions as data (`tasks.yaml`), and the problems made from them."""
