#include "binding/workers.h"

#include "instruction_sets/dispatch.h"
#include "tasks/choice.h"
#include "tasks/pages.h"

namespace scout {
namespace {

constexpr const char* kQueries = "[B, H, G, D]";

float* mean_key(const std::optional<Tensor>& tensor, Sizes sizes) {
    return tensor ? exact<float>("result.mean_key", *tensor, sizes) : nullptr;
}

}  // namespace

Workers::Workers(int threads, const std::string& isa, double delay_s)
    : kernels_(find_kernels(isa)), threads_(threads, delay_s) {
    find_torch();
}

std::unique_ptr<BoundJob> Workers::partial(const Tensor& q, const PoolLayerArgument& layer,
                                           const BlockListArgument& blocks, double scale, bool with_mean_key,
                                           bool helped) {
    const PartialArguments arguments{q, layer, blocks, scale};
    PartialCall call = partial_call(arguments);
    const auto out = new_like<float>(q, {call.B, call.H, call.G, call.D});
    const auto lse = new_like<float>(q, {call.B, call.H, call.G});
    Result<float> mean_key{nb::none(), nullptr};
    if (with_mean_key) mean_key = new_like<float>(q, {call.B, call.H, call.G, call.D});
    call.out = out.data, call.lse = lse.data, call.mean_key = mean_key.data;
    std::shared_ptr<Job> job;
    {
        nb::gil_scoped_release released;
        job = threads_.submit(make_partial_work(kernels_, call, threads_.count()), helped);
    }
    return std::make_unique<BoundJob>(std::move(job), owners(arguments),
                                      nb::make_tuple(out.tensor, lse.tensor, mean_key.tensor));
}

std::unique_ptr<BoundHandover> Workers::handover(const Tensor& q, const PoolLayerArgument& layer,
                                                 const BlockListArgument& blocks, double scale,
                                                 const PartialArgument& result,
                                                 const std::array<Tensor, 3>& flags, PollThread& thread) {
    const PartialArguments arguments{q, layer, blocks, scale};
    PartialCall call = partial_call(arguments);
    const auto& [out, lse, key] = result;
    const auto [B, H, G, D] = std::array{call.B, call.H, call.G, call.D};
    call.out = exact<float>("result.out", out, {B, H, G, D});
    call.lse = exact<float>("result.lse", lse, {B, H, G});
    call.mean_key = mean_key(key, {B, H, G, D});
    std::vector<nb::object> tensors = owners(arguments);
    for (const Tensor& tensor : {std::get<0>(blocks), std::get<1>(blocks), out, lse}) tensors.push_back(tensor.owner());
    if (key) tensors.push_back(key->owner());
    for (const Tensor& flag : flags) tensors.push_back(flag.owner());
    const Flags words{reinterpret_cast<const uint32_t*>(exact<int32_t>("flags.called", flags[0], {1})),
                      reinterpret_cast<uint32_t*>(exact<int32_t>("flags.answered", flags[1], {1})),
                      exact<int64_t>("flags.waited", flags[2], {1})};
    return std::make_unique<BoundHandover>(kernels_, threads_, thread, call, words, std::move(tensors));
}

nb::tuple Workers::split_choice(const SplitRequestArgument& request) {
    const auto& [candidates, picks, wishes, closed, slots, rows, always, counts] = request;
    const auto& [asked, all, threshold] = rows;
    const auto [B, H, N] = shape<3>("wishes", wishes, "[B, H, N]");
    const int64_t C = shape<3>("candidates", candidates, "[B, H, C]")[2];
    const int64_t width = shape<3>("slots", slots.first, "[B, H, NB]")[2];
    SplitChoiceCall call{};
    call.B = B, call.H = H, call.N = N, call.C = C, call.always = always;
    call.width = width, call.no_slot = slots.second;
    call.candidates = exact<int64_t>("candidates", candidates, {B, H, C});
    call.picks = picks ? exact<int64_t>("picks", *picks, {B, H, N}) : nullptr;
    call.wishes = pages<float>("wishes", wishes, {H, N}), call.wishes_b = wishes.stride(0);
    call.wishes_h = wishes.stride(1);
    call.closed = exact<int64_t>("closed", closed, {B});
    call.slots = exact<int64_t>("slots", slots.first, {B, H, width});
    call.asked = exact<bool>("asked", asked, {B});
    call.all = exact<bool>("all_of_it", all, {B});
    call.threshold = exact<float>("threshold", threshold, {B});
    call.counts = exact<int64_t>("counts", counts, {2, B, H});
    const auto chosen = new_like<int64_t>(candidates, {B, H, N});
    const auto attended = new_like<bool>(asked, {B, H, N}), absent = new_like<bool>(asked, {B, H, N});
    call.blocks = chosen.data, call.attended = attended.data, call.absent = absent.data;
    scout::split_choice(call);
    return nb::make_tuple(chosen.tensor, attended.tensor, absent.tensor);
}

void Workers::update_interest(const Tensor& interest, const Tensor& blocks, const Tensor& wishes, const Tensor& rows,
                              double kept) {
    const auto [B, H, width] = shape<3>("interest", interest, "[B, H, NB]");
    const int64_t C = shape<3>("blocks", blocks, "[B, H, C]")[2];
    scout::update_interest({B, H, C, width, exact<int64_t>("blocks", blocks, {B, H, C}),
                            exact<float>("wishes", wishes, {B, H, C}), exact<bool>("rows", rows, {B}), float(kept),
                            exact<float>("interest", interest, {B, H, width})});
}

nb::tuple Workers::find_late(const GuardRequestArgument& request) {
    const auto& [wanted, scouts, scout_error, rows, limit, counts] = request;
    const auto& [blocks, absent, wishes] = wanted;
    const auto& [scouted, served] = scouts;
    const auto [B, H, N] = shape<3>("blocks", blocks, "[B, H, N]");
    FindLateCall call{};
    call.B = B, call.H = H, call.N = N, call.limit = float(limit);
    call.blocks = exact<int64_t>("blocks", blocks, {B, H, N});
    call.absent = exact<bool>("absent", absent, {B, H, N});
    call.wishes = exact<float>("wishes", wishes, {B, H, N});
    call.scouted = exact<int64_t>("scouted", scouted, {B, H, N});
    call.served = exact<bool>("served", served, {B, H, N});
    call.scout_error = exact<float>("scout_error", scout_error, {B, H});
    call.asked = exact<bool>("rows", rows, {B});
    call.counts = exact<int64_t>("counts", counts, {2, B, H});
    const auto spoilt = new_like<bool>(absent, {B, H}), late = new_like<bool>(absent, {B, H, N});
    call.spoilt = spoilt.data, call.late = late.data;
    scout::find_late(call);
    return nb::make_tuple(spoilt.tensor, late.tensor);
}

nb::tuple Workers::page_list(const Tensor& pages, const Tensor& blocks, const Tensor& wanted, int64_t size) {
    const auto [B, H, N] = shape<3>("blocks", blocks, "[B, H, N]");
    PageListCall call{};
    call.B = B, call.H = H, call.N = N, call.C = N, call.size = size;
    call.table = table("table", pages, {B}, "[B, NB]"), call.width = pages.size(1);
    call.candidates = exact<int64_t>("blocks", blocks, {B, H, N});
    call.wanted = exact<bool>("wanted", wanted, {B, H, N});
    const auto index = new_like<int32_t>(pages, {B, H, N}), length = new_like<int32_t>(pages, {B, H, N});
    call.index = index.data, call.length = length.data;
    list_pages(call);
    return nb::make_tuple(index.tensor, length.tensor);
}

nb::tuple Workers::near_list(const NearRequestArgument& request) {
    const auto& [pages, candidates, picks, count, closed, opened, size] = request;
    const auto [B, H, C] = shape<3>("candidates", candidates, "[B, H, C]");
    check("count", count, C, "the candidates");
    PageListCall call{};
    call.B = B, call.H = H, call.N = count, call.C = C, call.size = size;
    call.table = table("table", pages, {B}, "[B, NB]"), call.width = pages.size(1);
    call.candidates = exact<int64_t>("candidates", candidates, {B, H, C});
    call.picks = picks ? exact<int64_t>("picks", *picks, {B, H, count}) : nullptr;
    call.closed = exact<int64_t>("closed", closed, {B});
    call.entry = exact<int64_t>("entry", opened.first, {B}), call.fill = exact<int64_t>("fill", opened.second, {B});
    const auto index = new_like<int32_t>(pages, {B, H, 1 + count}), length = new_like<int32_t>(pages, {B, H, 1 + count});
    call.index = index.data, call.length = length.data;
    list_pages(call);
    return nb::make_tuple(index.tensor, length.tensor);
}

void Workers::append(const Tensor& rows, const Tensor& pool, const Tensor& entry, const Tensor& fill) {
    const auto [B, H, D] = shape<3>("rows", rows, "[B, H, D]");
    const auto [S, heads, P, width] = shape<4>("pool", pool, "[S, H, P, D]");
    const auto [a, b] = std::pair{rows.memory.dtype, pool.memory.dtype};
    const bool alike = a.code == b.code && a.bits == b.bits && heads == H && width == D;
    if (!alike || !is_contiguous(rows, 2) || !is_contiguous(pool, 2))
        throw std::invalid_argument("rows are " + text(rows, "dtype") + " " + text(rows, "shape") + " and the pool is " +
                                    text(pool, "dtype") + " " + text(pool, "shape") +
                                    ": both must have the same dtype, H and D, and contiguous rows");
    const int64_t element = a.bits / 8;
    append_rows({B, H, S, P, D * element, address<char>(rows), rows.stride(0) * element, rows.stride(1) * element,
                 address<char>(pool), pool.stride(0) * element, pool.stride(1) * element,
                 exact<int64_t>("entry", entry, {B}), exact<int64_t>("fill", fill, {B})});
}

nb::tuple Workers::merge(const PartialArgument& a, const PartialArgument& b) {
    const auto& [a_out, a_lse, a_key] = a;
    const auto& [b_out, b_lse, b_key] = b;
    const auto [B, H, G, D] = shape<4>("a.out", a_out, kQueries);
    const PartialView from_a{exact<float>("a.out", a_out, {B, H, G, D}), exact<float>("a.lse", a_lse, {B, H, G})};
    const PartialView from_b{exact<float>("b.out", b_out, {B, H, G, D}), exact<float>("b.lse", b_lse, {B, H, G})};
    const auto out = new_like<float>(a_out, {B, H, G, D}), lse = new_like<float>(a_lse, {B, H, G});
    kernels_.merge(from_a, from_b, B * H * G, D, out.data, lse.data);
    return nb::make_tuple(out.tensor, lse.tensor);
}

nb::object Workers::corrected_lse(const PartialArgument& far, const Tensor& q, const Tensor& scout, double scale) {
    const auto& [out, lse, key] = far;
    const auto [B, H, G, D] = shape<4>("q", q, kQueries);
    if (!key)
        throw std::invalid_argument("the far partial has no mean key: it must be computed with one to be corrected");
    const float* true_query = exact<float>("q", q, {B, H, G, D});
    const float* predicted = exact<float>("q_hat", scout, {B, H, G, D});
    const float* keys = exact<float>("far.mean_key", *key, {B, H, G, D});
    const float* before = exact<float>("far.lse", lse, {B, H, G});
    const auto after = new_like<float>(lse, {B, H, G});
    kernels_.correct(true_query, predicted, keys, float(scale), B * H * G, D, before, after.data);
    return after.tensor;
}

nb::object Workers::scout_error(const PartialArgument& far, const PartialArgument& near, const Tensor& q,
                                const Tensor& scout) {
    const auto [B, H, G, D] = shape<4>("q", q, kQueries);
    const float* true_query = exact<float>("q", q, {B, H, G, D});
    const float* predicted = exact<float>("q_hat", scout, {B, H, G, D});
    const float* far_lse = exact<float>("far.lse", std::get<1>(far), {B, H, G});
    const float* near_lse = exact<float>("near.lse", std::get<1>(near), {B, H, G});
    const auto out = new_like<float>(q, {B, H});
    for (int64_t h = 0; h < B * H; ++h)
        kernels_.scout_error(true_query + h * G * D, predicted + h * G * D, far_lse + h * G, near_lse + h * G, G, D,
                             out.data + h);
    return out.tensor;
}

uint64_t Workers::read(const Tensor& data) {
    check_on_cpu("data", data);
    if (!is_contiguous(data, 0))
        throw std::invalid_argument("data has strides " + text(data, "stride") + ": it must be contiguous");
    const char* begin = address<char>(data);
    int64_t bytes = data.memory.dtype.bits / 8;
    for (int axis = 0; axis < data.memory.ndim; ++axis) bytes *= data.size(axis);
    // The best instruction set, whatever the other calls use: the number stands for what the machine can read.
    const Kernels& best = *supported_kernels().back();
    std::atomic<uint64_t> sum{0};
    run([&] { return make_read_work(best, begin, bytes, sum, threads_.count()); });
    return sum;
}

std::vector<std::tuple<int64_t, int, double, double>> Workers::take_tasks() {
    const auto seconds = [](TaskTimes::Time time) {
        return std::chrono::duration<double>(time.time_since_epoch()).count();
    };
    std::vector<std::tuple<int64_t, int, double, double>> tasks;
    for (const TaskTimes& one : threads_.take_tasks())
        tasks.emplace_back(one.job, one.thread, seconds(one.start), seconds(one.end));
    return tasks;
}

void Workers::close() { threads_.close(); }

}  // namespace scout
