"""The parts of a cluster: nodes, shards, their manifests, and tasks."""
