"""What happens to files on their way: in the disk, on the network, on a server that answers with a page."""


def mutated(rng, data, other):
    """A file that something happened to."""
    at, to = sorted(rng.sample(range(len(data)), 2))
    kind = rng.choice(("cut", "flip", "splice", "zero", "page", "empty"))
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 4, 30))):
            changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        return bytes(changed)
    return {
        "cut": data[:to],
        "splice": data[:at] + other[at:],
        "zero": data[:at] + bytes(to - at) + data[to:],
        "page": b"<html>502 Bad Gateway</html>",
        "empty": b"",
    }[kind]
