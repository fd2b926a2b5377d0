"""The one error of this package."""


class PackError(ValueError):
    """A pack, or a file of one, cannot be used; the message is one sentence for the user."""
