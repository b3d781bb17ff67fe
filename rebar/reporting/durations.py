"""Times in words."""


def in_words(seconds: float) -> str:
    """Such as '3 h 05 min', '12 min', '40 s'."""
    if seconds < 90:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
