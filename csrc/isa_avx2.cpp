#define SCOUT_VECTOR_FLOATS 8
#include "codes_body.h"
#include "partial_body.h"

namespace scout {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {
    "avx2", {partial<float>, partial<BFloat16>, partial<Float16>}, scores, code_scores};
}  // namespace scout
