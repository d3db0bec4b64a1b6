"""The six groups of tokens over which effects are averaged (ROME paper, section 2.2)."""

GROUPS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)


def token_groups(subject_range: tuple[int, int], length: int) -> dict[str, list[int]]:
    """Return the positions of each group that a prompt has.

    Every token from the subject on belongs to exactly one group: a subject of one token is its last, and a prompt's
    last token is just that even where it is the first after the subject. Where the subject ends the prompt its last
    token is the last subject token.

    Args:
        subject_range: positions [begin, end) of the subject.
        length: number of tokens of the prompt.
    """
    begin, end = subject_range
    places = {
        "first subject token": range(begin, min(begin + 1, end - 1)),
        "middle subject tokens": range(begin + 1, end - 1),
        "last subject token": range(end - 1, end),
        "first subsequent token": range(end, min(end + 1, length - 1)),
        "further tokens": range(end + 1, length - 1),
        "last token": range(max(end, length - 1), length),
    }
    return {name: list(tokens) for name, tokens in places.items() if len(tokens)}
