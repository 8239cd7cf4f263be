"""How benchmarks measure and report: options, callers, timing, pairs, figures, drawings."""
