"""One module per command of `resin`: `configure(parser)` adds its arguments, `run(args)` returns the exit code."""
