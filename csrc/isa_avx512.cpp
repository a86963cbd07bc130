#define SCOUT_VECTOR_FLOATS 16
#include "codes_body.h"
#include "partial_body.h"

namespace scout {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = {
    "avx512", {partial<float>, partial<BFloat16>, partial<Float16>}, scores, code_scores};
}  // namespace scout
