"""What the command tells its user instead of a traceback."""


class MergeError(Exception):
    """Something the user can put right; the message is one sentence."""
