"""All subjects of the zoo at the top level of one file, as `load_file` and a child process need them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from zoo import RIGHT, WRONG

globals().update({subject.name: subject for subject in [*RIGHT, *(entry.subject for entry in WRONG)]})
