"""The plugins that come with the package, written like a third party's: AMD, and the defaults of the reference host.

Only hook implementations belong here; the code behind them lives in `objectives`, `rewards`, `models` and `sharding`.
"""
