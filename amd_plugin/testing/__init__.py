"""Conformance tests for adapters, ours and other people's: what any host with AMD in it has to keep.

    pytest --pyargs amd_plugin.testing --adapter my_package.conformance:MyAdapter

MyAdapter has the methods of `amd_plugin.testing.adapter.Adapter`: it makes a tiny run of the host, stock or with AMD.
"""
