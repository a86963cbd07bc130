#define SCOUT_VECTOR_FLOATS 8
#include "instruction_sets/table.h"

SCOUT_DEFINE_KERNELS(avx2)
