#include "tasks/choice.h"

#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kMostBlocks = 1 << 26;  // bounds the memory that a wrong list can ask for

}  // namespace

void split_choice(const SplitChoiceCall& call) {
    const int64_t rows = call.B * call.H;
    std::fill(call.counts, call.counts + 2 * rows, 0);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t b = row / call.H;
        const float* wishes = call.wishes + b * call.wishes_b + row % call.H * call.wishes_h;
        for (int64_t n = 0; n < call.N; ++n) {
            const int64_t pick = call.picks ? call.picks[row * call.N + n] : n;
            check("pick", pick, call.C - 1, "the candidates");
            const int64_t block = call.candidates[row * call.C + pick];
            check("block", block, call.width - 1, "the blocks that have slots");
            call.blocks[row * call.N + n] = block;
            const bool absent = call.slots[row * call.width + block] == call.no_slot;
            const bool wished = n < call.always || wishes[n] >= call.threshold[b];
            const bool attended = call.asked[b] && block < call.closed[b] && (!absent || call.all[b] || wished);
            call.attended[row * call.N + n] = attended;
            call.absent[row * call.N + n] = attended && absent;
            call.counts[row] += attended;
            call.counts[rows + row] += attended && absent;
        }
    }
}

void update_interest(const UpdateInterestCall& call) {
    for (int64_t row = 0; row < call.B * call.H; ++row) {
        if (!call.asked[row / call.H]) continue;
        float* interest = call.interest + row * call.width;
        for (int64_t i = 0; i < call.width; ++i) interest[i] *= call.kept;
        for (int64_t i = row * call.C; i < (row + 1) * call.C; ++i) {
            check("block", call.blocks[i], call.width - 1, "the blocks that have an interest");
            interest[call.blocks[i]] += (1 - call.kept) * call.wishes[i];
        }
    }
}

void find_late(const FindLateCall& call) {
    thread_local std::vector<uint8_t> attended;
    const int64_t rows = call.B * call.H;
    std::fill(call.counts, call.counts + 2 * rows, 0);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t b = row / call.H, first = row * call.N;
        int64_t last = 0;
        for (int64_t n = first; n < first + call.N; ++n) {
            check("block", call.scouted[n], kMostBlocks, "the most blocks of a sequence");
            check("block", call.blocks[n], kMostBlocks, "the most blocks of a sequence");
            last = std::max({last, call.scouted[n], call.blocks[n]});
        }
        attended.assign(last + 1, 0);
        for (int64_t n = first; n < first + call.N; ++n)
            if (call.served[n]) attended[call.scouted[n]] = 1;
        float missed = 0;
        for (int64_t n = first; n < first + call.N; ++n)
            if (call.absent[n] && !attended[call.blocks[n]]) missed += call.wishes[n];
        const bool spoilt = call.asked[b] && !(call.scout_error[row] <= call.limit);  // NaN too
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
