from pathlib import Path
def write_report(runs, output):
    return output
