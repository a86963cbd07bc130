#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kBytesPerThread = 1 << 18;  // bytes of weights that take some 10 microseconds to read
constexpr int64_t kUnit = 16;                 // outputs that the widest kernel takes at a time

class LinearWork final : public Work {
  public:
    LinearWork(const Kernels& kernels, const LinearCall& call, int threads)
        : kernels_(kernels), call_(call), packed_(call.M * call.B * padded(call.I)) {
        threads_ = worthwhile_threads(call.M * call.O * line_bytes(), kBytesPerThread, threads);
        parts_ = call.M ? std::min(units(), ceil_div(wanted_tasks(threads_), call.M)) : 0;
        for (int64_t m = 0; m < call.M; ++m)
            kernels.pack_rows[call.dtype](call.x + m * call.B * call.I, call.B, call.I,
                                          packed_.data() + m * call.B * padded(call.I));
    }

    int64_t tasks() const override { return call_.M * parts_; }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        const int64_t m = number / parts_, part = number % parts_;
        const int64_t first = units() * part / parts_ * kUnit;
        const int64_t end = std::min(call_.O, units() * (part + 1) / parts_ * kUnit);
        const char* weight = call_.weight + m * call_.matrix_stride * kElementBytes[call_.dtype] + first * line_bytes();
        kernels_.linear[call_.dtype]({packed_.data() + m * call_.B * padded(call_.I), weight, call_.B, call_.I,
                                      end - first, call_.out + m * call_.B * call_.O + first, call_.O});
    }

  private:
    int64_t units() const { return ceil_div(call_.O, kUnit); }
    int64_t line_bytes() const { return call_.I * kElementBytes[call_.dtype]; }

    const Kernels& kernels_;
    const LinearCall call_;
    std::vector<float> packed_;  // the rows of each matrix, as the kernel reads them
    int64_t threads_, parts_;    // parts: tasks of each matrix
};

}  // namespace

std::unique_ptr<Work> make_linear_work(const Kernels& kernels, const LinearCall& call, int threads) {
    check_aligned(call.weight, call.dtype);
    return std::make_unique<LinearWork>(kernels, call, threads);
}

}  // namespace scout
