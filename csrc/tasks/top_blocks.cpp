#include <cstring>
#include <functional>

#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kScoresPerThread = 1 << 14;  // scores that take some 20 microseconds

constexpr uint32_t kLast = ~uint32_t(0);

// A number that is the larger, the larger x is.
uint64_t ordered(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits ^ (bits >> 31 ? kLast : uint32_t(1) << 31);
}

class TopBlocksWork final : public Work {
  public:
    TopBlocksWork(const Kernels& kernels, const TopBlocksCall& call, int threads) : kernels_(kernels), call_(call) {
        for (int64_t b = 0; b < call.B; ++b)
            check("closed blocks", call.closed[b], call.N, "the blocks that have scores");
        check("count", call.count, call.N, "the blocks that have scores");
        threads_ = worthwhile_threads(call.B * call.H * call.G * call.N, kScoresPerThread, threads);
    }

    int64_t tasks() const override { return call_.B * call_.H; }
    int64_t threads() const override { return threads_; }

    void run(int64_t row) noexcept override {
        const int64_t N = call_.N, closed = call_.closed[row / call_.H];
        float* wishes = call_.wishes + row * N;
        kernels_.wishes({call_.scores + row * call_.G * N, closed, N, call_.G, call_.largest,
                         scratch_memory(2 * N), wishes});
        std::fill(wishes + closed, wishes + N, 0.0f);
        choose(wishes, closed, call_.blocks + row * call_.count, call_.top_wishes + row * call_.count);
    }

  private:
    // Sink and recent blocks come before all others, and blocks that do not exist after them, whatever the wishes. A wish
    // that is NaN counts as the smallest.
    void choose(const float* wishes, int64_t closed, int64_t* blocks, float* top_wishes) const {
        thread_local std::vector<uint64_t> keys;  // of blocks that are wanted more, or come earlier, they are larger
        keys.resize(call_.N);
        for (int64_t i = 0; i < call_.N; ++i) {
            const bool always = i < call_.sink || i >= closed - call_.recent;
            keys[i] = ordered(i >= closed ? -2 : (wishes[i] >= 0 ? wishes[i] : -1) + 2.0f * always) << 32 | (kLast - i);
        }
        const auto end = keys.begin() + call_.count;
        if (end != keys.end()) std::nth_element(keys.begin(), end, keys.end(), std::greater<>());
        std::sort(keys.begin(), end, std::greater<>());
        for (int64_t i = 0; i < call_.count; ++i) blocks[i] = kLast - uint32_t(keys[i]);
        for (int64_t i = 0; i < call_.count; ++i) top_wishes[i] = wishes[blocks[i]];
    }

    const Kernels& kernels_;
    const TopBlocksCall call_;
    int64_t threads_;
};

}  // namespace

std::unique_ptr<Work> make_top_blocks_work(const Kernels& kernels, const TopBlocksCall& call, int threads) {
    return std::make_unique<TopBlocksWork>(kernels, call, threads);
}

}  // namespace scout
