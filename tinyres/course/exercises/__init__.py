"""The exercises, three per chapter. Their wrong answers are also the faults that the engine's own tests must notice."""
