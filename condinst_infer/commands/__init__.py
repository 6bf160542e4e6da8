"""What the verbs of `condinst` do, once `cli` has read the command line.

Each takes the parsed arguments and returns the exit status.
"""
