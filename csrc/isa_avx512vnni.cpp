#define SCOUT_VECTOR_FLOATS 16
#include "codes_body.h"
#include "partial_body.h"

namespace scout {
extern const Kernels kernels_avx512vnni;
const Kernels kernels_avx512vnni = {
    "avx512vnni", {partial<float>, partial<BFloat16>, partial<Float16>}, scores, code_scores};
}  // namespace scout
