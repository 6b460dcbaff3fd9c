"""The simulated exchange: matching, synthetic flow, and own orders beside a recording. Virtual time, no I/O."""
