#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kProductsPerThread = 1 << 20;  // products of numbers that take some 10 microseconds
constexpr int64_t kTaskRows = 192;  // rows that share a tile of keys: more would leave the second cache

// A task is some of the positions and one KV head.
class CausalWork final : public Work {
  public:
    CausalWork(const Kernels& kernels, const CausalCall& call, int threads) : kernels_(kernels), call_(call) {
        const int64_t products = call.H * call.n * call.G * (2 * call.T - call.n) * call.D;
        threads_ = worthwhile_threads(products, kProductsPerThread, threads);
        const int64_t most = ceil_div(kTaskRows, call.G), fair = ceil_div(call.n * call.H, wanted_tasks(threads_));
        positions_ = std::min(most, std::max(fair, ceil_div(kCausalRows, call.G)));
    }

    int64_t tasks() const override { return ceil_div(call_.n, positions_) * call_.H; }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        // The last positions see the most keys, and come first: what ends last is short.
        const int64_t first = (ceil_div(call_.n, positions_) - 1 - number / call_.H) * positions_;
        const int64_t head = number % call_.H, positions = std::min(positions_, call_.n - first);
        const int64_t row = call_.H * call_.G * call_.D, token = call_.H * call_.D;
        const int64_t q = first * row + head * call_.G * call_.D, element = kElementBytes[call_.dtype];
        kernels_.causal[call_.dtype]({call_.q + q * element, call_.k + head * call_.D * element,
                                      call_.v + head * call_.D * element, row, token, call_.T - call_.n + first,
                                      positions, call_.G, call_.D, call_.scale,
                                      scratch_memory(causal_scratch_floats(positions * call_.G, call_.D)),
                                      call_.out + q});
    }

  private:
    const Kernels& kernels_;
    const CausalCall call_;
    int64_t threads_, positions_;
};

}  // namespace

std::unique_ptr<Work> make_causal_work(const Kernels& kernels, const CausalCall& call, int threads) {
    for (const char* memory : {call.q, call.k, call.v}) check_aligned(memory, call.dtype);
    return std::make_unique<CausalWork>(kernels, call, threads);
}

}  // namespace scout
