#include "tasks/linear.h"

#include "runtime/stages.h"
#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;  // bytes of weights that take some 10 microseconds to read
constexpr int64_t kUnit = 16;                 // outputs that the widest kernel takes at a time

int64_t units(const LinearCall& call) { return ceil_div(call.O, kUnit); }

class LinearWork final : public Work {
  public:
    LinearWork(const Kernels& kernels, const LinearCall& call, int threads) : tasks_(kernels, call, threads) {
        tasks_.pack();
    }

    int64_t tasks() const override { return tasks_.count(); }
    int64_t threads() const override { return tasks_.threads(); }
    void run(int64_t number) noexcept override { tasks_.run(number); }

  private:
    LinearTasks tasks_;
};

// The first stage packs rows. A task of the other one is some of the rows, and lines that are laid out together.
class ManyRowsWork final : public StagedWork {
  public:
    ManyRowsWork(const Kernels& kernels, const LinearCall& call, int most)
        : kernels_(kernels), call_(call), packed_(new char[call.B * packed_row_bytes(kStored, call.I)]) {
        int64_t begin = 0;
        for (const LinearPart& part : call_.parts) {
            for (int64_t first = 0; first < part.lines; first += kManyLines)
                units_.push_back({&part, first, begin + first});
            begin += part.lines;
        }
        const int64_t threads = worthwhile_threads(call.B * call.O * call.I, kProductsPerThread, most);
        const int64_t wanted = call.O ? ceil_div(wanted_tasks(threads), units_.size()) : 0;
        packing_ = std::min(call.B, wanted_tasks(threads)), row_tasks_ = std::min(wanted, ceil_div(call.B, kLeastRows));
        add_stage(packing_, threads, [this](int64_t number) { pack(number); });
        add_stage(units_.size() * row_tasks_, threads,
                  [this](int64_t number) { multiply(units_[number / row_tasks_], number % row_tasks_); });
    }

  private:
    static constexpr int64_t kLeastRows = 48, kProductsPerThread = 1 << 20;  // products that take some 10 microseconds
    struct Unit {
        const LinearPart* part;
        int64_t line, column;  // the first, in the part and in the matrix
    };

    char* packed(int64_t row) const { return packed_.get() + row * kStoredPanelBytes; }

    void pack(int64_t number) noexcept {
        const int64_t first = call_.B * number / packing_, end = call_.B * (number + 1) / packing_;
        kernels_.pack_many(call_.x + first * call_.I, end - first, call_.I, call_.B, packed(first));
    }

    void multiply(const Unit& unit, int64_t number) const noexcept {
        const auto& [part, line, column] = unit;
        const int64_t first = call_.B * number / row_tasks_, end = call_.B * (number + 1) / row_tasks_;
        kernels_.linear_many[part->kind - kStored](
            {packed(first), part->weight + line * part->line_bytes, end - first, call_.I,
             std::min(kManyLines, part->lines - line), call_.out + first * call_.O + column, call_.O, call_.B});
    }

    const Kernels& kernels_;
    const LinearCall call_;
    const std::unique_ptr<char[]> packed_;
    std::vector<Unit> units_;
    int64_t packing_, row_tasks_;
};

// Lines of stored weights as numbers.
class ExpandWork final : public Work {
  public:
    ExpandWork(const Kernels& kernels, const ExpandCall& call, int threads)
        : kernels_(kernels), call_(call), threads_(worthwhile_threads(call.lines * call.I, kBytesPerThread, threads)),
          tasks_(std::min(call.lines, wanted_tasks(threads_))) {}

    int64_t tasks() const override { return tasks_; }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        const int64_t first = call_.lines * number / tasks_, end = call_.lines * (number + 1) / tasks_;
        const uint8_t* lines = call_.weight + first * call_.line_bytes;
        char* out = static_cast<char*>(call_.out) + first * call_.I * kElementBytes[call_.dtype];
        kernels_.expand[call_.kind - kStored][call_.dtype](lines, end - first, call_.I, out);
    }

  private:
    const Kernels& kernels_;
    const ExpandCall call_;
    const int64_t threads_, tasks_;
};

}  // namespace

LinearTasks::LinearTasks(const Kernels& kernels, const LinearCall& call, int threads) : kernels_(kernels), call_(call) {
    int64_t bytes = 0;
    for (const LinearPart& part : call_.parts) {
        bytes += part.lines * part.line_bytes;
        if (part.kind < kDTypes) check_aligned(part.weight, static_cast<DType>(part.kind));
    }
    threads_ = worthwhile_threads(call.M * bytes, kBytesPerThread, threads);
    tasks_ = call.M ? std::min(units(call), ceil_div(wanted_tasks(threads_), call.M)) : 0;
}

void LinearTasks::pack() {
    if (call_.M * call_.B == 0) return;
    for (const LinearPart& part : call_.parts) {
        std::vector<Line>& packed = packed_[part.kind];
        if (!packed.empty()) continue;
        const int64_t row = packed_row_bytes(part.kind, call_.I);
        packed.resize(ceil_div(call_.M * call_.B * row, sizeof(Line)));
        for (int64_t m = 0; m < call_.M; ++m)
            kernels_.pack_rows[part.kind](call_.x + m * call_.B * call_.I, call_.B, call_.I,
                                          reinterpret_cast<char*>(packed.data()) + m * call_.B * row);
    }
}

void LinearTasks::run(int64_t number) noexcept {
    const int64_t m = number / tasks_, task = number % tasks_;
    const int64_t first = units(call_) * task / tasks_ * kUnit;
    const int64_t end = std::min(call_.O, units(call_) * (task + 1) / tasks_ * kUnit);
    int64_t begin = 0;
    for (const LinearPart& part : call_.parts) {
        multiply(m, part, begin, std::max(first - begin, int64_t(0)), std::min(end - begin, part.lines));
        begin += part.lines;
    }
}

// The products with lines `first` to `end` of a part whose first line is line `begin` of the matrix.
void LinearTasks::multiply(int64_t m, const LinearPart& part, int64_t begin, int64_t first,
                           int64_t end) const noexcept {
    if (first >= end) return;
    const char* rows = reinterpret_cast<const char*>(packed_[part.kind].data());
    const char* weight = part.weight + m * part.matrix_bytes + first * part.line_bytes;
    kernels_.linear[part.kind]({rows + m * call_.B * packed_row_bytes(part.kind, call_.I), weight, call_.B, call_.I,
                                end - first, call_.out + m * call_.B * call_.O + begin + first, call_.O});
}

std::unique_ptr<Work> make_expand_work(const Kernels& kernels, const ExpandCall& call, int threads) {
    return std::make_unique<ExpandWork>(kernels, call, threads);
}

std::unique_ptr<Work> make_many_rows_work(const Kernels& kernels, const LinearCall& call, int threads) {
    return std::make_unique<ManyRowsWork>(kernels, call, threads);
}

std::unique_ptr<Work> make_linear_work(const Kernels& kernels, const LinearCall& call, int threads) {
    return std::make_unique<LinearWork>(kernels, call, threads);
}

}  // namespace scout
