"""The migration job: what the leader plans for it, how its steps are stored, what operators ask."""
