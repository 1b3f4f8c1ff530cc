"""What runs in a Python kernel before the user's first line.

Nothing here imports pandas, matplotlib or PIL: a formatter is registered by the *name* of
its type, and PIL is touched when the user imports it.
"""
