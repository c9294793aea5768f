"""Run a model's Python and SQL without trusting it. `docs/sandbox.md` says what holds where."""
