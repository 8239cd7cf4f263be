"""The control loops that one coordinator runs: observe, plan, execute, collect garbage."""
