"""Escape text from users for HTML, plots, Markdown tables and the terminal.

Such text is the name of a run, a class or a folder, an error message, or a command line.
"""

import html


def for_html(text: str) -> str:
    """Return text as HTML, for elements and attributes."""
    return html.escape(text)


def for_plot(text: str) -> str:
    """Return text that matplotlib draws literally.

    matplotlib parses text between two ``$`` as TeX, and omits labels that start with an underscore from legends.
    """
    return ("\u200b" if text.startswith("_") else "") + for_terminal(text).replace("$", r"\$")


def for_markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return for_terminal(text).replace("|", r"\|")


def for_terminal(text: str) -> str:
    """Return text with control characters, such as those of escape sequences, replaced by Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
