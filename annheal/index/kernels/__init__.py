"""Machine code of the hot loops: compiled by a separate process, kept on disk, loaded when ready.

`catalog` lists the kernels, `cache` finds the folder of their machine code, `compile` is the
process that compiles them, `supply` starts it and loads machine code when it is ready, and `loaded`
has the kernels that this process has loaded.
"""
