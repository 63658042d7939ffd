"""`amd_plugin.maths.operators` under the name it is documented by."""

from amd_plugin.maths.operators import *  # noqa: F403
from amd_plugin.maths.operators import __all__ as __all__
