#!/bin/sh
# properties = {properties}
echo used >> "$PARITY_MARKER"
{exec_job}
