// The table of kernels of one instruction set. Included by the files named after instruction sets alone, each of which
// is compiled with its own flags and sets SCOUT_VECTOR_FLOATS, the floats of its vectors.
#pragma once

#include "bodies/linear.h"
#include "bodies/merge.h"
#include "bodies/partial.h"
#include "bodies/partial_packed.h"
#include "bodies/read.h"
#include "bodies/rows.h"
#include "bodies/score_key_codes.h"
#include "bodies/score_min_max.h"
#include "bodies/wishes.h"

// Defines scout::kernels_<isa>.
#define SCOUT_DEFINE_KERNELS(isa)                                                                                  \
    namespace scout {                                                                                              \
    extern const Kernels kernels_##isa;                                                                            \
    const Kernels kernels_##isa = {                                                                                \
        #isa, {partial<float>, partial<BFloat16>, partial<Float16>, packed_partial<8>, packed_partial<4>},         \
        score_min_max, score_key_codes, wishes,                                                                    \
        {pack_rows<float>, pack_rows<BFloat16>, pack_rows<Float16>},                                               \
        {linear<float>, linear<BFloat16>, linear<Float16>},                                                        \
        merge, correct, scout_error, rms_norm, rotate, swiglu, read_words};                                        \
    }
