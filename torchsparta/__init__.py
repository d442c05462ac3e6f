"""torchsparta: pruned and quantized models become fast, with the same numbers out."""
