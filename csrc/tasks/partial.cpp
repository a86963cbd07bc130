#include <cmath>
#include <limits>

#include "tasks/common.h"

namespace scout {
namespace {

// Tokens of a task, about. A row is split by its own length alone, so that its sums do not depend on the batch.
constexpr int64_t kTaskTokens = 512;
constexpr int64_t kChannelsPerThread = 1 << 17;  // channels of keys that take some 40 microseconds

class PartialWork final : public Work {
  public:
    PartialWork(const Kernels& kernels, const PartialCall& call, int threads) : kernels_(kernels), call_(call) {
        list_blocks();
        threads_ = worthwhile_threads(tokens_ * call.D, kChannelsPerThread, threads);
        make_tasks();
        reserve_results();
    }

    int64_t tasks() const override { return int64_t(tasks_.size()); }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        if (call_.gate && call_.gate->is_shut()) return;
        const Task& task = tasks_[number];
        Row& row = rows_[task.row];
        const int64_t b = task.row / call_.H, h = task.row % call_.H;
        const PoolLayer& layer = call_.layer;
        const int64_t bytes = kElementBytes[layer.dtype];
        PartialRun run;
        run.q = call_.q + (b * call_.H + h) * call_.G * call_.D;
        run.k = layer.k + h * layer.k_head * bytes;
        run.v = layer.v + h * layer.v_head * bytes;
        run.k_page = layer.k_page, run.v_page = layer.v_page;
        run.k_bounds = layer.k_bounds + h * layer.k_bounds_head, run.k_bounds_page = layer.k_bounds_page;
        run.v_bounds = layer.v_bounds + h * layer.v_bounds_head, run.v_bounds_page = layer.v_bounds_page;
        run.positions = layer.positions;
        run.blocks = blocks_.data() + task.first, run.count = task.count;
        run.heads = call_.G, run.dim = call_.D, run.scale = call_.scale;
        const int64_t floats = layer.dtype < kDTypes ? scratch_floats(call_.G, call_.D)
                                                     : packed_scratch_floats(call_.G, call_.D, layer.positions);
        run.scratch = scratch_memory(floats + (call_.gate ? result_floats() : 0));
        const bool whole = row.tasks == 1;
        const PartialResult to = !whole      ? task_result(number)
                                 : call_.gate ? result_at(run.scratch + floats)
                                              : row_result(task.row);
        run.out = to.out, run.lse = to.lse, run.mean_key = to.mean_key;
        kernels_.partial[layer.dtype](run);
        if (whole ? call_.gate != nullptr : left_[task.row].fetch_sub(1, std::memory_order_acq_rel) == 1)
            publish(task.row, to);
    }

  private:
    // One KV head of one sequence: its listed blocks, and the tasks they are split over.
    struct Row {
        int64_t first_block, blocks, tokens;
        int64_t first_task = 0, tasks = 0;
    };
    struct Task {
        int64_t row, first, count;
    };
    struct PartialResult {
        float *out, *lse, *mean_key;
    };

    void list_blocks() {
        const int64_t last_page = call_.layer.pages - 1, positions = call_.layer.positions;
        rows_.reserve(call_.B * call_.H);
        for (int64_t b = 0; b < call_.B; ++b)
            for (int64_t h = 0; h < call_.H; ++h) {
                const int32_t *index = call_.index.row(b, h), *length = call_.length.row(b, h);
                Row row{int64_t(blocks_.size()), 0, 0};
                for (int64_t n = 0; n < call_.N; ++n) {
                    if (length[n] == 0) continue;
                    check("block length", length[n], positions, "the positions of a page");
                    check("block index", index[n], last_page, "the pages of the pool");
                    blocks_.push_back({index[n], length[n]});
                    row.tokens += length[n];
                }
                row.blocks = int64_t(blocks_.size()) - row.first_block;
                rows_.push_back(row);
                tokens_ += row.tokens;
            }
    }

    void make_tasks() {
        for (int64_t r = 0; r < int64_t(rows_.size()); ++r) {
            Row& row = rows_[r];
            row.first_task = int64_t(tasks_.size());
            if (row.blocks == 0) {
                write_nothing(row_result(r));
                continue;
            }
            const int64_t parts = std::min(row.blocks, std::max<int64_t>(1, (row.tokens + kTaskTokens / 2) / kTaskTokens));
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t first = row.blocks * part / parts, end = row.blocks * (part + 1) / parts;
                tasks_.push_back({r, row.first_block + first, end - first});
            }
            row.tasks = parts;
        }
    }

    void reserve_results() {
        if (tasks_.size() <= rows_.size() && std::all_of(rows_.begin(), rows_.end(), [](const Row& row) {
                return row.tasks <= 1;
            }))
            return;
        results_.resize(tasks_.size() * result_floats());
        left_ = std::make_unique<std::atomic<int64_t>[]>(rows_.size());
        for (size_t r = 0; r < rows_.size(); ++r) left_[r].store(rows_[r].tasks, std::memory_order_relaxed);
    }

    int64_t result_floats() const { return call_.G * (1 + call_.D * (call_.mean_key ? 2 : 1)); }

    PartialResult row_result(int64_t row) const {
        const int64_t G = call_.G, D = call_.D;
        return {call_.out + row * G * D, call_.lse + row * G, call_.mean_key ? call_.mean_key + row * G * D : nullptr};
    }

    PartialResult task_result(int64_t task) { return result_at(results_.data() + task * result_floats()); }

    PartialResult result_at(float* memory) const {
        const int64_t G = call_.G, D = call_.D;
        return {memory + G, memory, call_.mean_key ? memory + G + G * D : nullptr};
    }

    // Writes a row's result where others read it. `last`: the result of the last of the row's tasks.
    void publish(int64_t row, PartialResult last) {
        if (call_.gate && !call_.gate->enter()) return;
        if (rows_[row].tasks == 1) copy(last, row_result(row));
        else merge(row);
        if (call_.gate) call_.gate->leave();
    }

    void copy(PartialResult from, PartialResult to) const {
        const int64_t G = call_.G, D = call_.D;
        std::copy_n(from.out, G * D, to.out);
        std::copy_n(from.lse, G, to.lse);
        if (to.mean_key) std::copy_n(from.mean_key, G * D, to.mean_key);
    }

    void write_nothing(PartialResult to) const {
        const int64_t G = call_.G, D = call_.D;
        std::fill_n(to.out, G * D, 0.0f);
        std::fill_n(to.lse, G, -std::numeric_limits<float>::infinity());
        if (to.mean_key) std::fill_n(to.mean_key, G * D, 0.0f);
    }

    // Merges the results of a row's tasks, in their order. Each task has keys, so every lse is finite.
    void merge(int64_t r) {
        const Row& row = rows_[r];
        const PartialResult to = row_result(r);
        const int64_t D = call_.D;
        write_nothing(to);
        for (int64_t g = 0; g < call_.G; ++g) {
            float most = to.lse[g], sum = 0;
            for (int64_t t = 0; t < row.tasks; ++t) most = std::max(most, task_result(row.first_task + t).lse[g]);
            for (int64_t t = 0; t < row.tasks; ++t) sum += std::exp(task_result(row.first_task + t).lse[g] - most);
            to.lse[g] = most + std::log(sum);
            for (int64_t t = 0; t < row.tasks; ++t) {
                const PartialResult from = task_result(row.first_task + t);
                const float weight = std::exp(from.lse[g] - most) / sum;
                for (int64_t d = g * D; d < (g + 1) * D; ++d) to.out[d] += weight * from.out[d];
                if (!to.mean_key) continue;
                for (int64_t d = g * D; d < (g + 1) * D; ++d) to.mean_key[d] += weight * from.mean_key[d];
            }
        }
    }

    const Kernels& kernels_;
    const PartialCall call_;
    std::vector<ListedBlock> blocks_;
    std::vector<Row> rows_;
    std::vector<Task> tasks_;
    int64_t tokens_ = 0, threads_ = 1;
    std::vector<float> results_;  // lse, out and mean key of each task; empty where no row is split
    std::unique_ptr<std::atomic<int64_t>[]> left_;  // tasks of each row that have not ended
};

}  // namespace

std::unique_ptr<Work> make_partial_work(const Kernels& kernels, const PartialCall& call, int threads) {
    check_aligned(call.layer.k, call.layer.dtype);
    check_aligned(call.layer.v, call.layer.dtype);
    return std::make_unique<PartialWork>(kernels, call, threads);
}

}  // namespace scout
