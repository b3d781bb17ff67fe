"""Files, locks, caches, buckets and the Hugging Face Hub."""
