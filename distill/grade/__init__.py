"""Graders: each turns a problem and a trace into a `Grade` with one of six outcomes."""
