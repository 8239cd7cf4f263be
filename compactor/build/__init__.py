"""From source segments to a new one: gather the live rows, build, calibrate, store."""
