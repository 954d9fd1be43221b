"""Train and tune: vocabularies, lessons, recipes, stages and checkpoints that resume."""
