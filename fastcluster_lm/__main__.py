"""`python -m fastcluster_lm` is `fclm`; nothing else happens here."""

from fastcluster_lm.cli import main

main(prog_name="fclm")
