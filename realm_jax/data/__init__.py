"""Text and token ids: corpora, vocabularies, passages, queries and answers."""
