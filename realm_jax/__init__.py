"""REALM, retrieval-augmented language model pre-training, for JAX."""

__version__ = "0.1.0"
