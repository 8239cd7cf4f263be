"""How benchmarks measure and report: options, data, callers, timing, figures, drawings."""
