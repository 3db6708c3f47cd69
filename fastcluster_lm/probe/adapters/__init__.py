"""Callbacks that let other trainers call a ClusterProbe, a file for each; none is loaded before it is asked for."""
