"""``amd-plugin``, and ``python -m amd_plugin``: the command line with the time in which it is imported."""

import signal
import sys

from amd_plugin import interrupts


def main() -> None:
    """Runs the command line; a signal while its imports go on, or in its first and last moments, ends it in one line too."""
    interrupts.answer()
    try:
        from amd_plugin import cli

        cli.main()
    except interrupts.Interrupted as end:
        interrupts.ignore()
        print(interrupts.WORDS[signal.Signals(end.args[0])], file=sys.stderr)
        sys.exit(128 + end.args[0])


if __name__ == "__main__":
    main()
