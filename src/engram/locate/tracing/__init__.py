"""Causal tracing: restored states, one at a time, while the subject is corrupted (ROME paper, section 2)."""
