"""Where the states of probed points come from, a file for each source; nothing here scores them."""
