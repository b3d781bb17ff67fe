"""Atomic file writes, file locks, and transfers to and from S3 and the Hugging Face Hub."""
