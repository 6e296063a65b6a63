#!/usr/bin/env bash
# Snakemake runs this once in the new environment, from the folder where it was started: the checkout.
set -euo pipefail
pip install --no-deps -e .
