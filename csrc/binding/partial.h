// Partial attention from Python: its tensors as a call, and a submitted call as an object.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <memory>
#include <optional>
#include <tuple>
#include <vector>

#include "binding/tensor.h"
#include "runtime/handover.h"

namespace scout {

// The named tuples of Python, in the order of their fields.
using BlockListArgument = std::tuple<Tensor, Tensor>;                        // types.BlockList
using PartialArgument = std::tuple<Tensor, Tensor, std::optional<Tensor>>;   // types.Partial
// runtime.workers.PoolLayer: keys, values, their bounds where packed, bits of a code or 0, positions of a page.
using PoolLayerArgument =
    std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>, int, int64_t>;

struct PartialArguments {
    Tensor q;
    const PoolLayerArgument& layer;
    const BlockListArgument& blocks;
    double scale;
};

// A call without its results. Throws std::invalid_argument where a tensor does not fit.
PartialCall partial_call(const PartialArguments& arguments);
// The tensors that the call reads.
std::vector<nb::object> owners(const PartialArguments& arguments);

// A submitted partial. It owns the tensors that it reads and writes, so it ends only after its job.
class BoundJob {
  public:
    BoundJob(std::shared_ptr<Job> job, std::vector<nb::object> inputs, nb::object result)
        : job_(std::move(job)), inputs_(std::move(inputs)), result_(std::move(result)) {}
    BoundJob(const BoundJob&) = delete;
    BoundJob& operator=(const BoundJob&) = delete;
    ~BoundJob() {
        if (!job_->done()) wait();
    }

    void wait();
    nb::object result() const { return result_; }
    int64_t number() const { return job_->number(); }
    double ran_s() const { return job_->ran_s(); }
    double started_s() const { return job_->started_s(); }
    double waited_s() const { return waited_s_; }

  private:
    std::shared_ptr<Job> job_;
    std::vector<nb::object> inputs_;
    nb::object result_;
    double waited_s_ = 0;
};

// A handover that owns its tensors. Closing it waits for threads, and so releases Python's lock.
class BoundHandover : public Handover {
  public:
    BoundHandover(const Kernels& kernels, WorkerThreads& workers, PollThread& thread, const PartialCall& call,
                  Flags flags, std::vector<nb::object> tensors)
        : Handover(kernels, workers, thread, call, flags), tensors_(std::move(tensors)) {}
    ~BoundHandover() override {
        nb::gil_scoped_release released;
        close();
    }

  private:
    std::vector<nb::object> tensors_;
};

// The classes Job, Handover and PollThread.
void bind_partial(nb::module_& m);

}  // namespace scout
