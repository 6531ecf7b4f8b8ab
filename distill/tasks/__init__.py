"""Evaluation tasks for lm-eval: our definitions of the benchmarks that students are judged by."""
