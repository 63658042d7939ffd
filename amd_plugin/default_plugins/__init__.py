"""The plugins that come with the package, written like anybody else's: AMD, and what the reference host brings itself.

Only hook implementations belong here; what they return lives in `objectives`, `rewards`, `models` and `sharding`.
"""
