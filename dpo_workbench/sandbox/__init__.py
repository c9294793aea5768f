"""Run a model's Python and SQL without trusting it. `docs/sandbox.md` says which guards hold where."""
