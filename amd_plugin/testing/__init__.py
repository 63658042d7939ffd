"""Conformance tests for adapters, ours and other people's: the laws that every host with AMD must satisfy.

    pytest --pyargs amd_plugin.testing --adapter my_package.conformance:MyAdapter

MyAdapter has the methods of `amd_plugin.testing.adapter.Adapter`, which create tiny runs of the host, stock or with AMD.
"""
