#include "binding/partial.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

namespace scout {
namespace {

DType dtype_of(const Tensor& k, const Tensor& v) {
    check_on_cpu("k", k);
    check_on_cpu("v", v);
    const Element elements[] = {kElement<float>, kBFloat16Element, kElement<uint16_t>};
    for (int i = kFloat32; i <= kFloat16; ++i)
        if (has(k, elements[i]) && has(v, elements[i])) return static_cast<DType>(i);
    throw std::invalid_argument("k is " + text(k, "dtype") + " and v is " + text(v, "dtype") +
                                ": both must be float32, bfloat16 or float16 alike");
}

void check_strides(const char* name, const Tensor& tensor) {
    if (!is_contiguous(tensor, 2))
        throw std::invalid_argument(std::string(name) + " has strides " + text(tensor, "stride") +
                                    ": the last two axes must be contiguous");
}

PoolLayer plain_layer(const Tensor& q, const Tensor& k, const Tensor& v) {
    const DType dtype = dtype_of(k, v);
    const auto *a = q.memory.shape, *b = k.memory.shape;
    const bool fits = q.memory.ndim == 4 && k.memory.ndim == 4 && v.memory.ndim == 4 &&
                      std::equal(b, b + 4, v.memory.shape) && a[1] == b[1] && a[3] == b[3];
    if (!fits)
        throw std::invalid_argument("q is " + text(q, "shape") + ", k " + text(k, "shape") + " and v " +
                                    text(v, "shape") + ": they must be [B, H, G, D], [S, H, P, D] and [S, H, P, D] " +
                                    "with the same H and D");
    check_strides("k", k);
    check_strides("v", v);
    PoolLayer layer{};
    layer.k = address<char>(k), layer.v = address<char>(v);
    layer.k_page = k.stride(0), layer.k_head = k.stride(1), layer.v_page = v.stride(0), layer.v_head = v.stride(1);
    layer.pages = b[0], layer.positions = b[2], layer.dtype = dtype;
    return layer;
}

const uint16_t* bounds(const char* name, const Tensor& tensor, int64_t H, int64_t D) {
    check_pages(name, tensor, kBFloat16Element, {H, 2, D}, 2);
    return address<uint16_t>(tensor);
}

PoolLayer packed_layer(const PoolLayerArgument& argument, int64_t H, int64_t D) {
    const auto& [k, v, k_bounds, v_bounds, bits, P] = argument;
    PoolLayer layer{};
    layer.k = reinterpret_cast<const char*>(pages<uint8_t>("k.words", k, {H, packed_words(D, bits), P, 4}));
    layer.v = reinterpret_cast<const char*>(pages<uint8_t>("v.words", v, {H, packed_words(P, bits), D, 4}));
    layer.k_bounds = bounds("k.bounds", *k_bounds, H, D);
    layer.v_bounds = bounds("v.bounds", *v_bounds, H, D);
    layer.k_page = k.stride(0), layer.k_head = k.stride(1), layer.v_page = v.stride(0), layer.v_head = v.stride(1);
    layer.k_bounds_page = k_bounds->stride(0), layer.k_bounds_head = k_bounds->stride(1);
    layer.v_bounds_page = v_bounds->stride(0), layer.v_bounds_head = v_bounds->stride(1);
    layer.pages = std::min({k.size(0), v.size(0), k_bounds->size(0), v_bounds->size(0)});
    layer.positions = P, layer.dtype = bits == 8 ? kInt8 : kInt4;
    return layer;
}

nb::tuple report(const BoundHandover& handover) {
    HandoverReport report;
    {
        nb::gil_scoped_release released;
        report = handover.report();
    }
    return nb::make_tuple(report.started_s, report.ran_s, report.waited_s, report.failure, report.job);
}

// Of the last calls of handovers whose results were waited for: seconds that ran behind other work, seconds that were
// waited for, and the place of the first one that has failed, or -1.
nb::tuple summed_reports(const std::vector<const BoundHandover*>& handovers) {
    double hidden_s = 0, waited_s = 0;
    int64_t failed = -1;
    for (size_t place = 0; place < handovers.size(); ++place) {
        const HandoverReport report = handovers[place]->report();
        hidden_s += std::max(0.0, report.ran_s - report.waited_s);
        waited_s += report.waited_s;
        if (failed < 0 && !report.failure.empty()) failed = int64_t(place);
    }
    return nb::make_tuple(hidden_s, waited_s, failed);
}

}  // namespace

PartialCall partial_call(const PartialArguments& arguments) {
    const auto& [q, layer, blocks, scale] = arguments;
    const auto& [k, v, k_bounds, v_bounds, bits, positions] = layer;
    const auto& [index, length] = blocks;
    check_on_cpu("q", q);
    PartialCall call{};
    if (!k_bounds) call.layer = plain_layer(q, k, v);
    const auto [B, H, G, D] = shape<4>("q", q, "[B, H, G, D]");
    if (G < 1 || D < 1) throw std::invalid_argument("q is " + text(q, "shape") + ": G and D must be at least 1");
    if (k_bounds) call.layer = packed_layer(layer, H, D);
    call.q = exact<float>("q", q, {B, H, G, D});
    call.B = B, call.H = H, call.G = G, call.D = D, call.scale = float(scale);
    call.index = table("blocks.index", index, {B, H}, "[B, H, N]");
    call.N = index.size(2);
    call.length = table("blocks.length", length, {B, H}, "[B, H, N]");
    if (length.size(2) != call.N)
        throw std::invalid_argument("blocks.length is " + text(length, "shape") + ": it must be [B, H, N], " +
                                    text({B, H, call.N}));
    return call;
}

std::vector<nb::object> owners(const PartialArguments& arguments) {
    const auto& [k, v, k_bounds, v_bounds, bits, positions] = arguments.layer;
    std::vector<nb::object> tensors = {arguments.q.owner(), k.owner(), v.owner()};
    if (k_bounds) tensors.push_back(k_bounds->owner()), tensors.push_back(v_bounds->owner());
    return tensors;
}

void BoundJob::wait() {
    const auto start = Job::Clock::now();
    {
        nb::gil_scoped_release released;
        job_->wait();
    }
    waited_s_ = std::chrono::duration<double>(Job::Clock::now() - start).count();
}

void bind_partial(nb::module_& m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    nb::class_<BoundJob>(m, "Job")
        .def("wait", &BoundJob::wait)
        .def_prop_ro("result", &BoundJob::result)
        .def_prop_ro("number", &BoundJob::number)
        .def_prop_ro("ran_s", &BoundJob::ran_s)
        .def_prop_ro("started_s", &BoundJob::started_s)
        .def_prop_ro("waited_s", &BoundJob::waited_s);
    nb::class_<PollThread>(m, "PollThread")
        .def(nb::init<>())
        .def("begin", &PollThread::begin, unlocked)
        .def("end", &PollThread::end, unlocked)
        .def("failure", &PollThread::failure, unlocked)
        .def("close", &PollThread::close, unlocked);
    nb::class_<BoundHandover>(m, "Handover")
        .def("close", &BoundHandover::close, unlocked)
        .def("give_up", &BoundHandover::give_up, unlocked)
        .def("forget_failure", &BoundHandover::forget_failure, unlocked)
        .def("report", &report);
    m.def("summed_reports", &summed_reports);
}

}  // namespace scout
