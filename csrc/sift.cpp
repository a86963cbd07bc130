#include "sift.h"

#include <algorithm>
#include <vector>

#include "plan_common.h"

namespace scout {
namespace {

constexpr int64_t kMostBlocks = 1 << 26;  // bounds the memory that a broken list can ask for

}  // namespace

void sift(const SiftCall& call) {
    const int64_t rows = call.B * call.H;
    std::fill(call.counts, call.counts + 2 * rows, 0);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t b = row / call.H;
        for (int64_t n = 0; n < call.N; ++n) {
            const int64_t block = call.blocks[row * call.N + n];
            check("block", block, call.width - 1, "the blocks that have slots");
            const bool absent = call.slots[row * call.width + block] == call.none;
            const bool wished = n < call.always || call.wishes[row * call.N + n] >= call.least[b];
            const bool valid = call.asked[b] && block < call.closed[b] && (!absent || call.all[b] || wished);
            call.valid[row * call.N + n] = valid;
            call.absent[row * call.N + n] = valid && absent;
            call.counts[row] += valid;
            call.counts[rows + row] += valid && absent;
        }
    }
}

void blend(const BlendCall& call) {
    check("wishes", call.W, call.width, "the blocks that have an interest");
    for (int64_t row = 0; row < call.B * call.H; ++row) {
        if (!call.asked[row / call.H]) continue;
        const float* wishes = call.wishes + row * call.W;
        float* interest = call.interest + row * call.width;
        for (int64_t i = 0; i < call.W; ++i) interest[i] = call.kept * interest[i] + (1 - call.kept) * wishes[i];
    }
}

void find_late(const LateCall& call) {
    thread_local std::vector<uint8_t> attended;
    const int64_t rows = call.B * call.H;
    std::fill(call.counts, call.counts + 2 * rows, 0);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t b = row / call.H, first = row * call.N;
        int64_t last = 0;
        for (int64_t n = first; n < first + call.N; ++n) {
            check("block", call.ahead[n], kMostBlocks, "the most blocks of a sequence");
            check("block", call.blocks[n], kMostBlocks, "the most blocks of a sequence");
            last = std::max({last, call.ahead[n], call.blocks[n]});
        }
        attended.assign(last + 1, 0);
        for (int64_t n = first; n < first + call.N; ++n)
            if (call.served[n]) attended[call.ahead[n]] = 1;
        float missed = 0;
        for (int64_t n = first; n < first + call.N; ++n)
            if (call.absent[n] && !attended[call.blocks[n]]) missed += call.wishes[n];
        const bool spoilt = call.asked[b] && !(call.doubt[row] <= call.limit);  // so is what is no number
        int64_t late = 0;
        for (int64_t n = first; n < first + call.N; ++n) {
            const bool unseen = missed > call.limit && !attended[call.blocks[n]];
            call.late[n] = call.asked[b] && call.absent[n] && (spoilt || unseen);
            late += call.late[n];
        }
        call.spoilt[row] = spoilt;
        call.counts[row] = spoilt || late;
        call.counts[rows + row] = late;
    }
}

}  // namespace scout
