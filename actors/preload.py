"""What actors need, imported in one go: local clusters preload this in their first workers.

Modules leave no garbage, but make so many objects that looking for some among them takes a tenth of
the import. Nothing of what they hold is looked through again either.
"""

from __future__ import annotations

import gc
from importlib import import_module

gc.disable()
try:
    import_module("actors.shells")
finally:
    gc.freeze()
    gc.enable()
