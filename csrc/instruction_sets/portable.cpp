#define SCOUT_VECTOR_FLOATS 4
#include "instruction_sets/table.h"

SCOUT_DEFINE_KERNELS(portable)
