"""What the Python peers serve: the files that the suite wrote, read once, and their paths."""
import os

BODIES = {}
for base, _, names in os.walk(os.path.join(os.environ["CHAOS_SITE"], "bytes")):
    for name in names:
        with open(os.path.join(base, name), "rb") as file:
            BODIES[os.path.basename(base), name] = file.read()


def wanted(path, query):
    """Returns the kind of request, the time that it is to take and its answer's body, or None."""
    words = path.split("/")
    if len(words) != 4 or words[1] not in ("bytes", "wait", "block"):
        return None
    body = BODIES.get((words[2], words[3]))
    seconds = float(query[3:]) / 1000 if query.startswith("ms=") else 0.0
    return None if body is None else (words[1], seconds, body)
