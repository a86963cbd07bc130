// The kernels of one instruction set on worker threads, as Python calls them. Tensors come in, new tensors go out.
//
// Every tensor is checked here; each function throws std::invalid_argument with one sentence where one does not fit.
// Floats are float32 and contiguous. Axes as in bodies/kernels.h.
#pragma once

#include <nanobind/stl/array.h>

#include "binding/partial.h"
#include "binding/rows.h"

namespace scout {

// The named tuples of Python, in the order of their fields.
using SplitRequestArgument =
    std::tuple<Tensor, std::optional<Tensor>, Tensor, Tensor, std::pair<Tensor, int64_t>, std::array<Tensor, 3>,
               int64_t, Tensor>;  // types.SplitRequest
using GuardRequestArgument = std::tuple<std::array<Tensor, 3>, std::array<Tensor, 2>, Tensor, Tensor, double,
                                        Tensor>;           // types.GuardRequest

using NearRequestArgument = std::tuple<Tensor, Tensor, std::optional<Tensor>, int64_t, Tensor, std::pair<Tensor, Tensor>,
                                       int64_t>;  // requests.NearRequest

using CodesRequestArgument = std::tuple<Tensor, std::optional<std::pair<Tensor, Tensor>>, Tensor, Tensor,
                                        Tensor>;  // requests.CodesRequest
using TopRequestArgument = std::tuple<Tensor, std::optional<Tensor>, Tensor, Tensor, Tensor, Tensor, double,
                                std::tuple<int64_t, std::pair<int64_t, int64_t>, bool>>;  // requests.TopRequest
using LayerEndArgument = std::tuple<MatrixArgument, Tensor, MatrixArgument, MatrixArgument, Tensor,
                                    double>;  // reference_rows.LayerEnd, with parts of matrices

class Workers {
  public:
    Workers(int threads, const std::string& isa, double delay_s);

    // helped: the caller will wait at once.
    std::unique_ptr<BoundJob> partial(const Tensor& q, const PoolLayerArgument& layer, const BlockListArgument& blocks,
                                      double scale, bool with_mean_key, bool helped);
    // result: contiguous float32, written by each call.   flags: called and answered, int32 [1], and the time that the
    // device waited, int64 [1]. The handover owns its tensors.
    std::unique_ptr<BoundHandover> handover(const Tensor& q, const PoolLayerArgument& layer,
                                            const BlockListArgument& blocks, double scale,
                                            const PartialArgument& result, const std::array<Tensor, 3>& flags,
                                            PollThread& thread);

    // Scores [B, H, G, N] of q [B, H, G, D] with the digests at pages, int32 [B, H, N], the first `closed` of each
    // sequence, int64 [B]; other scores are not written.
    nb::object score_min_max(const Tensor& q, const Tensor& digests, const Tensor& pages, const Tensor& closed);
    nb::object score_key_codes(const Tensor& q, const Tensor& codes, const Tensor& bounds, const Tensor& pages,
                               const Tensor& closed);

    // Writes blocks' keys, or their products with a basis, in 2 bits to pages of a layer.
    void write_key_codes(const CodesRequestArgument& request);

    // always: how many sink and recent blocks come before all others.
    // Returns blocks and wishes [B, H, count], and the wishes [B, H, N] for all blocks.
    nb::tuple top_blocks(const Tensor& scores, const Tensor& closed, int64_t count, std::pair<int64_t, int64_t> always,
                         bool largest);
    // Scores by 2-bit digests and `top_blocks` of them, in one job.
    nb::tuple top_by_key_codes(const TopRequestArgument& request);
    nb::tuple split_choice(const SplitRequestArgument& request);
    void update_interest(const Tensor& interest, const Tensor& blocks, const Tensor& wishes, const Tensor& rows,
                         double kept);
    nb::tuple find_late(const GuardRequestArgument& request);
    nb::tuple page_list(const Tensor& table, const Tensor& blocks, const Tensor& wanted, int64_t size);
    nb::tuple near_list(const NearRequestArgument& request);
    // Writes rows [B, H, D] to a layer of a pool, [S, H, P, D] of the same dtype, at an entry and a position of each.
    void append(const Tensor& rows, const Tensor& pool, const Tensor& entry, const Tensor& fill);

    nb::tuple merge(const PartialArgument& a, const PartialArgument& b);
    nb::object corrected_lse(const PartialArgument& far, const Tensor& q, const Tensor& scout, double scale);
    nb::object scout_error(const PartialArgument& far, const PartialArgument& near, const Tensor& q,
                           const Tensor& scout);

    // Writes causal attention of q [n, H, G, D] to k and v [T, H, D] to out, float32.
    void causal(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& out);
    nb::object linear(const Tensor& x, const Tensor& weight);
    // parts: lines of one matrix as GGUF keeps them, and the number of their kind.   many: by the kernels for many rows,
    // which some instruction sets have for quantised kinds.
    nb::object linear_stored(const Tensor& x, const std::vector<std::pair<Tensor, int>>& parts, bool many);
    bool has_many_rows() const { return kernels_.pack_many != nullptr; }
    // Writes the numbers of stored lines to out.
    void expand(const Tensor& data, int number, const Tensor& out);
    // Products of x [T, G, D] with the rows of matrices [T, C, D]: [T, G, C].
    nb::object project(const Tensor& x, const Tensor& basis);
    // Of rows in float32 or bfloat16, and new tensors of the same. weight, bias, norm, cos and sin: float32.
    nb::object rms_norm(const Tensor& x, const Tensor& weight, double eps);
    nb::tuple add_norm(const Tensor& x, const Tensor& change, const Tensor& weight, double eps);
    // how: queries, bias, norm, eps, (cos, sin), paired; see HeadPlacing.
    nb::tuple place_heads(const Tensor& x, const HeadPlacingArgument& how);
    nb::object swiglu(const Tensor& x);
    // Of few rows of float32, in one job: a projection and `place_heads` of it, and all that follows a layer's attention,
    // which returns the residual stream and its norm.
    nb::tuple project_heads(const Tensor& x, const MatrixArgument& weight, const HeadPlacingArgument& how);
    nb::tuple end_layer(const Tensor& x, const Tensor& attended, const LayerEndArgument& by);

    uint64_t read(const Tensor& data);
    // Whether tasks of jobs that come are noted, and what was: (job, thread, start, end), in seconds of the steady clock.
    void set_recording(bool on) { threads_.set_recording(on); }
    std::vector<std::tuple<int64_t, int, double, double>> take_tasks();

    void close();
    int threads() const { return threads_.count(); }
    std::string isa() const { return kernels_.name; }

  private:
    // Submits the work that `make` makes, and waits for it, without Python's lock.
    template <class Make>
    void run(Make make) {
        nb::gil_scoped_release released;
        threads_.submit(make(), true)->wait();
    }
    void multiply(const LinearCall& call);
    void compute_rows(const RowsCall& call);

    const Kernels& kernels_;
    WorkerThreads threads_;
};

}  // namespace scout
