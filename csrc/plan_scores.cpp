#include <algorithm>

#include "plan_common.h"

namespace scout {
namespace {

// Products of a query's channel with a page's number, some 40 microseconds of them.
constexpr int64_t kDigestsPerThread = 1 << 20, kCodesPerThread = 1 << 22;

constexpr int64_t kUnit = 16;  // pages that the widest kernel takes at a time

// Scores of every listed page, for all query heads of a KV head at once.
class ScoreWork : public Work {
  public:
    // page_products: products that a page takes.   per_thread: products for which another thread pays.
    ScoreWork(const ScoreCall& call, int64_t page_products, int64_t per_thread, int threads) : call_(call) {
        pages_.reserve(call.B * call.N);
        for (int64_t b = 0; b < call.B; ++b)
            for (int64_t n = 0; n < call.N; ++n) {
                const int32_t page = call.pages.row(b, 0)[n];
                check("page", page, call.page_count - 1, "the pages of the digests");
                pages_.push_back(page);
            }
        const int64_t rows = call.B * call.H;
        threads_ = paying_threads(rows * call.N * page_products, per_thread, threads);
        parts_ = rows ? std::min(units(), ceil_div(wanted_tasks(threads_), rows)) : 0;
    }

    int64_t tasks() const final { return call_.B * call_.H * parts_; }
    int64_t threads() const final { return threads_; }

    void run(int64_t number) noexcept final {
        const int64_t row = number / parts_, part = number % parts_;
        const int64_t first = units() * part / parts_ * kUnit;
        const int64_t end = std::min(call_.N, units() * (part + 1) / parts_ * kUnit);
        run({call_.q + row * call_.G * call_.D, row % call_.H, pages_.data() + row / call_.H * call_.N + first,
             end - first, call_.out + row * call_.G * call_.N + first});
    }

  protected:
    // Some pages of one sequence and KV head.
    struct Task {
        const float* q;  // [G, D]
        int64_t head;
        const int32_t* pages;
        int64_t count;
        float* out;      // [G, count], rows N floats apart
    };

    virtual void run(const Task& task) const noexcept = 0;

    const ScoreCall call_;

  private:
    int64_t units() const { return ceil_div(call_.N, kUnit); }

    std::vector<int32_t> pages_;
    int64_t threads_, parts_;  // parts: tasks of each (sequence, KV head)
};

class DigestWork final : public ScoreWork {
  public:
    DigestWork(const Kernels& kernels, const ScoreCall& call, const DigestLayer& layer, int threads)
        : ScoreWork(call, call.G * 2 * call.D, kDigestsPerThread, threads), kernels_(kernels), layer_(layer) {}

  private:
    void run(const Task& task) const noexcept override {
        const int64_t G = call_.G, D = call_.D;
        thread_local std::vector<float> bounds;
        bounds.resize(std::max<size_t>(bounds.size(), G * 2 * D));
        for (int64_t g = 0; g < G; ++g)
            for (int64_t d = 0; d < D; ++d) {
                const float x = task.q[g * D + d];
                bounds[g * 2 * D + d] = std::max(x, 0.0f);
                bounds[g * 2 * D + D + d] = std::min(x, 0.0f);
            }
        float* scratch = scratch_memory(scratch_floats(G, 2 * D));
        kernels_.scores({bounds.data(), layer_.digests + task.head * layer_.head_stride, layer_.page_stride, task.pages,
                         task.count, G, 2 * D, scratch, task.out, call_.N});
    }

    const Kernels& kernels_;
    const DigestLayer layer_;
};

class CodeWork final : public ScoreWork {
  public:
    CodeWork(const Kernels& kernels, const ScoreCall& call, const CodeLayer& layer, int threads)
        : ScoreWork(call, call.G * call.D * layer.positions, kCodesPerThread, threads),
          kernels_(kernels),
          layer_(layer) {}

  private:
    void run(const Task& task) const noexcept override {
        float* scratch = scratch_memory(code_scratch_floats(call_.G, call_.D, layer_.positions));
        kernels_.code_scores({task.q, layer_.codes + task.head * layer_.codes_head,
                              layer_.bounds + task.head * layer_.bounds_head, layer_.codes_page, layer_.bounds_page,
                              task.pages, task.count, call_.G, call_.D, layer_.positions, scratch, task.out, call_.N});
    }

    const Kernels& kernels_;
    const CodeLayer layer_;
};

}  // namespace

std::unique_ptr<Work> plan_scores(const Kernels& kernels, const ScoreCall& call, const DigestLayer& layer,
                                  int threads) {
    return std::make_unique<DigestWork>(kernels, call, layer, threads);
}

std::unique_ptr<Work> plan_scores(const Kernels& kernels, const ScoreCall& call, const CodeLayer& layer, int threads) {
    return std::make_unique<CodeWork>(kernels, call, layer, threads);
}

}  // namespace scout
