"""Machine code of the hot loops: compiled by a process of its own, kept on disk, loaded when ready.

`catalog` names the kernels, `cache` says where machine code lies, `compile` is the process that
makes it, `supply` runs that process and loads what is ready, and `loaded` is what this process has.
"""
