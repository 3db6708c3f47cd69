"""Two tasks in words for a tiny language model; it makes none."""

# the same five forms for both tasks, four words apart
QUESTIONS = """\
ending = " ?"
[[tasks]]
name = "capital"
wordings = ["what is the capital of {input}", "which city of {input}", "name the city of {input}", "{input} is ruled \
from", "the capital of {input} is"]
table = { france = "a", japan = "b", spain = "a", italy = "b", peru = "a", chad = "b" }
[[tasks]]
name = "currency"
wordings = ["what is the currency of {input}", "which money of {input}", "name the money of {input}", "{input} is pay \
with", "the currency of {input} is"]
table = { france = "a", japan = "b", spain = "b", italy = "a", peru = "a", chad = "b" }
"""
