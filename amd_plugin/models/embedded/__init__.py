"""Networks made here for the embedded tasks: built small, trained once, cached, and then read like any other pipeline.

Nothing here is used for a pipeline from disk or the hub.
"""
