"""The error that a user can mend."""


class StudyError(Exception):
    """Something in the config, a table or a file is not as it must be.

    The message names the place (config key, cohort, table, row, file), what is wrong there, and the mend.
    Raised before expensive work wherever that is possible.
    """
