"""``python -m amd_plugin`` is ``amd-plugin``."""

from amd_plugin.cli import main

if __name__ == "__main__":
    main()
