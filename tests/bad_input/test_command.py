"""The command line itself, before anything is read."""

from tests.bad_input.table import Case, one_clear_line


def words(*given: str):
    return lambda parts, folder: [word.format(**parts._asdict()) for word in given]


CASES = [
    Case("command/none", words("no-such-command"), "unknown command 'no-such-command'"),
    Case("command/option unknown", words("index", "--no_such_option"), "required|unrecognized"),
    Case("command/index without arguments", words("index"), "required"),
    Case("command/evaluate number that is none", words("evaluate", "x", "--batch_size", "many"), "batch_size"),
    Case("command/data push without a name", words("data", "push"), "organisation/name"),
]

test_one_clear_line = one_clear_line(CASES)
