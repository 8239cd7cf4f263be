"""What benchmarks measure: Annheal's servers and parts, and other libraries in process."""
