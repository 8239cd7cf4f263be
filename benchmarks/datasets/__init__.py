"""What benchmarks do to a data set: loads, churn, and filters of every selectivity."""
