"""The five notebooks as one run: `runner` runs them, `manifest` says what a run is made of, `baselines` and `report`
judge and show it, `doctor` looks at the machine, `cli` is the `fcdpo` command."""
