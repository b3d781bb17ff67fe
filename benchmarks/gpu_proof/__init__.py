"""Measure Rebar on an NVIDIA GPU with one command, within a few minutes of GPU time.

Each part runs in its own process with a time limit and writes its results incrementally.
"""
