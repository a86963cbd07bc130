#include "plan_common.h"

namespace scout {
namespace {

typedef uint64_t Words __attribute__((vector_size(64)));

constexpr int64_t kTaskBytes = 1 << 20;
constexpr int kStreams = 4;  // that a task reads at once: one alone does not keep the memory busy
constexpr int64_t kAhead = 2048;  // bytes of each stream that are asked for before they are needed

// The sum of a memory's 64-bit words, for nothing but the reading.
class ReadWork final : public Work {
  public:
    ReadWork(const void* data, int64_t bytes, std::atomic<uint64_t>& sum, int threads)
        : data_(static_cast<const char*>(data)), bytes_(bytes), sum_(sum), threads_(threads) {
        if (bytes % int64_t(kStreams * sizeof(Words)) != 0)
            throw std::invalid_argument(std::to_string(bytes) + " bytes are not a multiple of " +
                                        std::to_string(kStreams * sizeof(Words)));
    }

    int64_t tasks() const override { return ceil_div(bytes_, kTaskBytes); }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        const int64_t stream = std::min(kTaskBytes, bytes_ - number * kTaskBytes) / kStreams;
        const char* at = data_ + number * kTaskBytes;
        Words sums[kStreams] = {};
        for (int64_t i = 0; i < stream; i += sizeof(Words))
            for (int s = 0; s < kStreams; ++s) {
                const char* word = at + s * stream + i;
                __builtin_prefetch(word + kAhead);
                Words words;
                __builtin_memcpy(&words, word, sizeof words);
                sums[s] += words;
            }
        uint64_t sum = 0;
        for (const Words& words : sums)
            for (size_t i = 0; i < sizeof(Words) / sizeof(uint64_t); ++i) sum += words[i];
        sum_.fetch_add(sum, std::memory_order_relaxed);
    }

  private:
    const char* const data_;
    const int64_t bytes_;
    std::atomic<uint64_t>& sum_;
    const int threads_;
};

}  // namespace

std::unique_ptr<Work> plan_read(const void* data, int64_t bytes, std::atomic<uint64_t>& sum, int threads) {
    return std::make_unique<ReadWork>(data, bytes, sum, threads);
}

}  // namespace scout
