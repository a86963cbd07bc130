#include <nanobind/stl/string.h>

#include "binding.h"

namespace scout {
namespace {

nb::tuple times(const BoundHandover& handover) {
    HandoverTimes times;
    {
        nb::gil_scoped_release released;
        times = handover.times();
    }
    return nb::make_tuple(times.started_s, times.ran_s, times.waited_s);
}

}  // namespace

PartialCall partial_call(const std::array<uint64_t, 10>& pointers, const std::array<int64_t, 8>& sizes,
                         const std::array<int64_t, 12>& strides, float scale) {
    const auto& [q, k, v, k_bounds, v_bounds, index, length, out, lse, mean_key] = pointers;
    const auto& [B, H, G, D, N, S, P, dtype] = sizes;
    const auto& s = strides;
    return {pointer<float>(q), B, H, G, D, N, scale,
            {pointer<char>(k), pointer<char>(v), s[0], s[1], s[2], s[3], pointer<uint16_t>(k_bounds),
             pointer<uint16_t>(v_bounds), s[4], s[5], s[6], s[7], S, P, static_cast<DType>(dtype)},
            {pointer<int32_t>(index), s[8], s[9]}, {pointer<int32_t>(length), s[10], s[11]},
            pointer<float>(out), pointer<float>(lse), pointer<float>(mean_key), nullptr};
}

void bind_handover(nb::module_& m) {
    const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
    m.attr("handover_start") = reinterpret_cast<uintptr_t>(&scout_handover_start);
    m.attr("handover_wait") = reinterpret_cast<uintptr_t>(&scout_handover_wait);
    nb::class_<BoundHandover>(m, "Handover")
        .def("close", &BoundHandover::close, unlocked)
        .def("forget_failure", &BoundHandover::forget_failure, unlocked)
        .def_prop_ro("ticket", &BoundHandover::ticket)
        .def_prop_ro("failure", &BoundHandover::failure, unlocked)
        .def_prop_ro("times", &times);
}

}  // namespace scout
