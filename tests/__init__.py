import os

# Device kernels run in Triton's interpreter, unless the environment says otherwise, as `make test-gpu` does. It has to
# be chosen before anything imports triton.
os.environ.setdefault("TRITON_INTERPRET", "1")
