"""RProgram to Triton source text, one file per kernel family."""
