"""What a process asks of its machine: memory, disks, folders of its own, and secrets to mask."""
