"""Score checkpoints. So far the picture book: held-out scenes, questions of every kind, both languages."""
