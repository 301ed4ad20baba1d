"""Run the pex that Pants is installed with, in place of one that it would download."""

import os
import runpy

os.environ.pop("PEX_PYTHON", None)
script = os.environ.pop("PEX_SCRIPT", "pex")
runpy.run_module("pex.cli" if script == "pex3" else "pex", run_name="__main__", alter_sys=True)
