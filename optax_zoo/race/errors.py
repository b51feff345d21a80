"""What the command tells its user instead of a traceback."""


class RaceError(Exception):
    """Something the user can put right; the message is one sentence."""
