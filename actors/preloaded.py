"""What a process imports before it becomes an actor.

Without looking for garbage: modules leave none, and there are many objects.
"""

import gc

gc.disable()
try:
    import actors.shells  # noqa: F401
finally:
    gc.enable()
