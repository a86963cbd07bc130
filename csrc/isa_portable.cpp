#define SCOUT_VECTOR_FLOATS 4
#include "codes_body.h"
#include "partial_body.h"

namespace scout {
extern const Kernels kernels_portable;
const Kernels kernels_portable = {
    "portable", {partial<float>, partial<BFloat16>, partial<Float16>}, scores, code_scores};
}  // namespace scout
