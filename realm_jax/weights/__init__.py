"""Parameters in other systems' files, and back: HF, TensorFlow, torch."""
