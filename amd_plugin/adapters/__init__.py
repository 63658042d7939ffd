"""AMD inside other people's toolkits: one module for each, which imports its host only when it is itself imported.

`compatibility` checks that a host still looks as the adapter was written for, `bridge` turns rewards into advantages for all of
them, and `shim` serves any trainer that parses arguments. Nothing here imports the reference host.
"""
