#define SCOUT_VECTOR_FLOATS 16
#include "instruction_sets/table.h"

SCOUT_DEFINE_KERNELS(avx512bf16)
