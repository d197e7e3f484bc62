"""Both sides of the reference pipeline's promises, measured on one GPU: `bash benchmarks/run_all.sh`."""
