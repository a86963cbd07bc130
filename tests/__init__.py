import os

# Device kernels run in Triton's interpreter; it has to be chosen before anything imports triton.
os.environ.setdefault("TRITON_INTERPRET", "1")
