"""The notebooks as one run: `runner` runs them, `manifest` says what a run is made of, `baselines` judges it,
`export` and `publish` show and give it to others, `doctor` looks at the machine, `train` takes several GPUs, `cli` is
the `fcdpo` command."""
