// The table of kernels of one instruction set. Included by the files named after instruction sets alone, each of which
// is compiled with its own flags and sets SCOUT_VECTOR_FLOATS, the floats of its vectors.
#pragma once

#include "bodies/causal.h"
#include "bodies/digests/score_key_codes.h"
#include "bodies/digests/score_min_max.h"
#include "bodies/digests/write_key_codes.h"
#include "bodies/linear.h"
#include "bodies/merge.h"
#include "bodies/partial.h"
#include "bodies/partial_packed.h"
#include "bodies/read.h"
#include "bodies/rows.h"
#include "bodies/stored/many_rows.h"
#include "bodies/stored/numbers.h"
#include "bodies/stored/products.h"
#include "bodies/wishes.h"

// A function for each WeightKind, in their order.
#define SCOUT_EVERY_DTYPE(of) of<float>, of<BFloat16>, of<Float16>
#define SCOUT_EVERY_STORED_KIND(of)                                                                               \
    of(Q4_0), of(Q4_1), of(Q5_0), of(Q5_1), of(Q8_0), of(Q2_K), of(Q3_K), of(Q4_K), of(Q5_K), of(Q6_K), of(IQ4_NL), \
        of(IQ4_XS)
#define SCOUT_PACK(kind) pack_stored<kind>
#define SCOUT_MULTIPLY(kind) multiply_stored<kind>
#define SCOUT_EXPAND(kind) {expand_stored<kind, float>, expand_stored<kind, BFloat16>}
#if defined(__AVX512VNNI__)
#define SCOUT_MANY(kind) multiply_many<kind>
#define SCOUT_PACK_MANY pack_many
#else
#define SCOUT_MANY(kind) nullptr
#define SCOUT_PACK_MANY nullptr
#endif
#define SCOUT_OF_ROWS(of) {of<float>, of<BFloat16>}

// Defines scout::kernels_<isa>.
#define SCOUT_DEFINE_KERNELS(isa)                                                                                  \
    namespace scout {                                                                                              \
    extern const Kernels kernels_##isa;                                                                            \
    const Kernels kernels_##isa = {                                                                                \
        #isa, {partial<float>, partial<BFloat16>, partial<Float16>, packed_partial<8>, packed_partial<4>},         \
        {SCOUT_EVERY_DTYPE(causal)}, score_min_max, score_key_codes, write_key_codes, wishes,                      \
        {SCOUT_EVERY_DTYPE(pack_rows), SCOUT_EVERY_STORED_KIND(SCOUT_PACK)},                                       \
        {SCOUT_EVERY_DTYPE(linear), SCOUT_EVERY_STORED_KIND(SCOUT_MULTIPLY)},                                      \
        SCOUT_PACK_MANY, {SCOUT_EVERY_STORED_KIND(SCOUT_MANY)},                                                    \
        {SCOUT_EVERY_STORED_KIND(SCOUT_EXPAND)},                                                                   \
        merge, correct, scout_error, SCOUT_OF_ROWS(norm_rows), SCOUT_OF_ROWS(place_heads), SCOUT_OF_ROWS(swiglu),  \
        read_words};                                                                                               \
    }
