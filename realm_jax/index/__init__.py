"""Embeddings, search and published snapshots."""
