#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kTaskBytes = 1 << 20, kUnit = 256;

// The sum of a memory's 64-bit words: it serves to time how fast memory can be read.
class ReadWork final : public Work {
  public:
    ReadWork(const Kernels& kernels, const void* data, int64_t bytes, std::atomic<uint64_t>& sum, int threads)
        : kernels_(kernels), data_(static_cast<const char*>(data)), bytes_(bytes), sum_(sum), threads_(threads) {
        if (bytes % kUnit != 0)
            throw std::invalid_argument(std::to_string(bytes) + " bytes are not a multiple of " +
                                        std::to_string(kUnit));
    }

    int64_t tasks() const override { return ceil_div(bytes_, kTaskBytes); }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        const int64_t first = number * kTaskBytes;
        const uint64_t sum = kernels_.read_words(data_ + first, std::min(kTaskBytes, bytes_ - first));
        sum_.fetch_add(sum, std::memory_order_relaxed);
    }

  private:
    const Kernels& kernels_;
    const char* const data_;
    const int64_t bytes_;
    std::atomic<uint64_t>& sum_;
    const int threads_;
};

}  // namespace

std::unique_ptr<Work> make_read_work(const Kernels& kernels, const void* data, int64_t bytes,
                                std::atomic<uint64_t>& sum, int threads) {
    return std::make_unique<ReadWork>(kernels, data, bytes, sum, threads);
}

}  // namespace scout
