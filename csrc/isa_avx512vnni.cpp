#define SCOUT_VECTOR_FLOATS 16
#include "codes_body.h"
#include "linear_body.h"
#include "merge_body.h"
#include "packed_body.h"
#include "partial_body.h"
#include "read_body.h"
#include "rows_body.h"
#include "scores_body.h"
#include "wish_body.h"

namespace scout {
extern const Kernels kernels_avx512vnni;
const Kernels kernels_avx512vnni = {
    "avx512vnni", {partial<float>, partial<BFloat16>, partial<Float16>, packed_partial<8>, packed_partial<4>},
    scores, code_scores, wishes,
    {pack_rows<float>, pack_rows<BFloat16>, pack_rows<Float16>}, {linear<float>, linear<BFloat16>, linear<Float16>},
    merge, correct, doubt, rms_norm, rotate, swiglu, read_words};
}  // namespace scout
