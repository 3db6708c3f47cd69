"""Where a run's probes are computed: in training's process, in one beside it, or on a stream of its GPU."""
