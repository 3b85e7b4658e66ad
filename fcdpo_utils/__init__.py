"""Teach a small language model to reason with function calls (arXiv 2410.18890)."""
