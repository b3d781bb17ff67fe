"""Measure Rebar on an NVIDIA GPU in one command that fits into a few minutes of machine time.

Each part runs in a process of its own with a time limit and writes its results while it runs.
"""
