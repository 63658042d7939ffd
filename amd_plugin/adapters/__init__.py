"""AMD inside other people's toolkits: one module each, importing its host only when it is itself imported.

`surface` checks that a host still looks as the adapter was written for, `steering` turns rewards into advantages for all of
them, `shim` serves any trainer that parses arguments.
"""
