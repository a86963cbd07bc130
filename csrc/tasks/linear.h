// Products of few rows with a matrix, cut into tasks.
#pragma once

#include "tasks/calls.h"

namespace scout {

// A task is some of a matrix's lines, as many as kernels take at once.
class LinearTasks {
  public:
    // Throws std::invalid_argument where a matrix is not aligned. The memory of the call must outlive the tasks.
    LinearTasks(const Kernels& kernels, const LinearCall& call, int threads);

    void pack();  // the rows, as the kernels read them; before the first task
    int64_t count() const { return call_.M * tasks_; }
    int64_t threads() const { return threads_; }
    void run(int64_t number) noexcept;

  private:
    struct alignas(64) Line {
        char bytes[64];
    };

    void multiply(int64_t m, const LinearPart& part, int64_t begin, int64_t first, int64_t end) const noexcept;

    const Kernels& kernels_;
    const LinearCall call_;
    std::vector<Line> packed_[kWeightKinds];  // the rows of each matrix, as the kernel of a kind reads them
    int64_t threads_, tasks_;                 // tasks: of each matrix
};

}  // namespace scout
