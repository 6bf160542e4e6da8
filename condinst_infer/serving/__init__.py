"""Ways into the pipeline from other programs: HTTP, NVIDIA Triton and the C library."""
