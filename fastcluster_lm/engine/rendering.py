"""A process that renders chat templates within limits of time and memory, run by its path; it imports nothing of ours.

It reads a line of JSON for each chat, and answers each with one: `text`, or `error`.
"""

import json
import resource
import signal
import sys
from pathlib import Path

# of work, for one chat; a template that needs more loops
MOST_SECONDS = 2.0
MOST_BYTES = 2**30
# a chat of one question has a hundredth
MOST_TEXT = 2**20


def main() -> None:
    """Answer until the other side closes."""
    # transformers' own filters and names, in jinja2's sandbox
    from transformers.utils.chat_template_utils import render_jinja_template

    statm = Path("/proc/self/statm")
    held = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES, held + MOST_BYTES))
    for line in sys.stdin:
        asked = json.loads(line)
        # the signal ends this process, in whatever it is
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            text = render_jinja_template(
                [asked["turns"]], chat_template=asked["template"], add_generation_prompt=True, **asked["words"]
            )[0][0]
            told = {"text": text} if len(text) <= MOST_TEXT else {"error": f"it wrote {len(text)} letters"}
        # a template raises what it likes: names that are not there, its own errors, what Python has
        except Exception as error:
            told = {"error": f"{type(error).__name__}: {error}"[:1000]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
