"""Cuts a row to the longest length allowed, from the prompt's side."""


def shorten(
    ids: list[int], labels: list[int], head: int, answer: int, max_length: int
) -> tuple[list[int], list[int], int, int]:
    """Keeps BOS and the last answer, and of what lies between the part next to the answer.

    An answer longer than `max_length` by itself loses its end; a quarter of the length then stays for the end of the
    prompt, so that what is left of the answer still answers something.

    Args:
        ids: Token ids.
        labels: Their labels.
        head: Tokens at the start that always stay (BOS: 1, else 0).
        answer: Where the last answer starts; `head` for a plain text, which so loses its end.
        max_length: The most tokens to keep.

    Returns:
        Ids, labels, the number of tokens cut, and how many of those from the end of the answer.
    """
    cut = len(ids) - max_length
    if cut <= 0:
        return ids, labels, 0, 0
    room = max_length - head
    if len(ids) - answer <= room:
        start, end = len(ids) - room, len(ids)
    else:
        start = answer - min(answer - head, max_length // 4)
        end = start + room
    return ids[:head] + ids[start:end], labels[:head] + labels[start:end], cut, len(ids) - end
