#include "tasks/common.h"

namespace scout {
namespace {

constexpr int64_t kBytesPerThread = 1 << 17;  // bytes of rows that take some 10 microseconds

// A task is some of the rows.
class RowsWork final : public Work {
  public:
    RowsWork(const RowsCall& call, int threads)
        : call_(call), threads_(worthwhile_threads(call.rows * call.row_bytes, kBytesPerThread, threads)),
          tasks_(std::min(call.rows, wanted_tasks(threads_))) {}

    int64_t tasks() const override { return tasks_; }
    int64_t threads() const override { return threads_; }

    void run(int64_t number) noexcept override {
        call_.compute(call_.rows * number / tasks_, call_.rows * (number + 1) / tasks_, scratch_memory(call_.scratch));
    }

  private:
    const RowsCall call_;
    const int64_t threads_, tasks_;
};

}  // namespace

std::unique_ptr<Work> make_rows_work(const RowsCall& call, int threads) {
    return std::make_unique<RowsWork>(call, threads);
}

}  // namespace scout
