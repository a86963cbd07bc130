#include "tasks/common.h"

namespace scout {
namespace {

// Channels of a key whose products take as long as the rest of its score: exponentials, and its share of a page.
constexpr int64_t kKeyChannels = 48;
// Multiplications that take some 40 microseconds.
constexpr int64_t kMinMaxPerThread = 1 << 20, kKeyCodesPerThread = 1 << 22, kWritesPerThread = 1 << 20;

constexpr int64_t kUnit = 16;  // pages that the widest kernel takes at a time

// Scores of every listed page, for all query heads of a KV head at once.
class ScoreWork : public Work {
  public:
    // page_products: multiplications of a page.   per_thread: multiplications that are worth another thread.
    ScoreWork(const ScoreCall& call, int64_t page_products, int64_t per_thread, int threads)
        : call_(call), lists_(call.pages.h_stride ? call.H : 1) {
        pages_.resize(call.B * lists_ * call.N);
        int64_t scored = 0;
        for (int64_t b = 0; b < call.B; ++b) {
            const int64_t closed = call.closed[b];
            check("closed blocks", closed, call.N, "the blocks that have pages");
            for (int64_t h = 0; h < lists_; ++h) {
                const int32_t* list = call.pages.row(b, h);
                for (int64_t n = 0; n < closed; ++n)
                    check("page", list[n], call.page_count - 1, "the pages of the digests");
                std::copy(list, list + closed, pages_.begin() + (b * lists_ + h) * call.N);
            }
            scored += call.H * closed;
        }
        const int64_t rows = call.B * call.H;
        threads_ = worthwhile_threads(scored * page_products, per_thread, threads);
        parts_ = rows ? std::min(units(), ceil_div(wanted_tasks(threads_), rows)) : 0;
    }

    int64_t tasks() const final { return call_.B * call_.H * parts_; }
    int64_t threads() const final { return threads_; }

    void run(int64_t number) noexcept final {
        const int64_t row = number / parts_, part = number % parts_, b = row / call_.H, h = row % call_.H;
        const int64_t first = units() * part / parts_ * kUnit;
        const int64_t end = std::min(call_.closed[b], units() * (part + 1) / parts_ * kUnit);
        if (first >= end) return;
        const int32_t* list = pages_.data() + (b * lists_ + h % lists_) * call_.N;
        run({call_.q + row * call_.G * call_.D, h, list + first, end - first,
             call_.out + row * call_.G * call_.N + first});
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

    const int64_t lists_;  // of a sequence: one for each KV head, or one for all
    std::vector<int32_t> pages_;
    int64_t threads_, parts_;  // parts: tasks of each (sequence, KV head)
};

class MinMaxWork final : public ScoreWork {
  public:
    MinMaxWork(const Kernels& kernels, const ScoreCall& call, const MinMaxLayer& layer, int threads)
        : ScoreWork(call, call.G * 2 * call.D, kMinMaxPerThread, threads), kernels_(kernels), layer_(layer) {}

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
        kernels_.score_min_max({bounds.data(), layer_.digests + task.head * layer_.head_stride, layer_.page_stride,
                                task.pages, task.count, G, 2 * D, scratch, task.out, call_.N});
    }

    const Kernels& kernels_;
    const MinMaxLayer layer_;
};

class KeyCodeWork final : public ScoreWork {
  public:
    KeyCodeWork(const Kernels& kernels, const ScoreCall& call, const KeyCodeLayer& layer, int threads)
        : ScoreWork(call, call.G * (call.D + kKeyChannels) * layer.positions, kKeyCodesPerThread, threads),
          kernels_(kernels),
          layer_(layer) {}

  private:
    void run(const Task& task) const noexcept override {
        float* scratch = scratch_memory(key_code_scratch_floats(call_.G, call_.D, layer_.positions));
        kernels_.score_key_codes({task.q, layer_.codes + task.head * layer_.codes_head,
                              layer_.bounds + task.head * layer_.bounds_head, layer_.codes_page, layer_.bounds_page,
                              layer_.bounds_row, task.pages, task.count, call_.G, call_.D, layer_.positions, scratch,
                              task.out, call_.N});
    }

    const Kernels& kernels_;
    const KeyCodeLayer layer_;
};

// A task is one block and KV head.
class WriteCodesWork final : public Work {
  public:
    WriteCodesWork(const Kernels& kernels, const WriteCodesCall& call, int threads) : kernels_(kernels), call_(call) {
        for (int64_t i = 0; i < call.n; ++i) {
            check("page", call.pages[i], call.page_count - 1, "the pages of the digests");
            if (call.which) check("a block's basis", row_of(i), call.basis_rows - 1, "the rows of the basis");
        }
        std::vector<int64_t> pages(call.pages, call.pages + call.n);
        std::sort(pages.begin(), pages.end());
        if (const auto twice = std::adjacent_find(pages.begin(), pages.end()); twice != pages.end())
            throw std::invalid_argument("page " + std::to_string(*twice) + " is given twice: a digest has one page");
        const int64_t products = call.n * call.H * call.P * call.D * (call.which ? call.C : 16);
        threads_ = worthwhile_threads(products, kWritesPerThread, threads);
    }

    int64_t tasks() const final { return call_.n * call_.H; }
    int64_t threads() const final { return threads_; }

    void run(int64_t number) noexcept final {
        const int64_t i = number / call_.H, h = number % call_.H, page = call_.pages[i], D = call_.D, C = call_.C;
        const KeyCodeLayer& layer = call_.layer;
        const float* basis = call_.which ? call_.basis + row_of(i) * call_.basis_row + h * C * D : nullptr;
        kernels_.write_key_codes({call_.k + i * call_.k_block + h * call_.k_head, basis, call_.k_position, call_.P, D,
                                  C, scratch_memory(write_codes_scratch_floats(D, C, call_.P)),
                                  layer.codes + page * layer.codes_page + h * layer.codes_head,
                                  layer.bounds + page * layer.bounds_page + h * layer.bounds_head, layer.bounds_row});
    }

  private:
    int64_t row_of(int64_t block) const { return call_.which[block * call_.which_stride]; }

    const Kernels& kernels_;
    const WriteCodesCall call_;
    int64_t threads_;
};

}  // namespace

std::unique_ptr<Work> make_write_codes_work(const Kernels& kernels, const WriteCodesCall& call, int threads) {
    return std::make_unique<WriteCodesWork>(kernels, call, threads);
}

std::unique_ptr<Work> make_score_work(const Kernels& kernels, const ScoreCall& call, const MinMaxLayer& layer,
                                      int threads) {
    return std::make_unique<MinMaxWork>(kernels, call, layer, threads);
}

std::unique_ptr<Work> make_score_work(const Kernels& kernels, const ScoreCall& call, const KeyCodeLayer& layer,
                                      int threads) {
    return std::make_unique<KeyCodeWork>(kernels, call, layer, threads);
}

}  // namespace scout
