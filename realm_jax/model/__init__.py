"""Pure Flax maths: encoder, retriever, reader and losses."""
