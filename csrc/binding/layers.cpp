// The methods of Workers that compute what a layer does of few rows before its attention, and after it.
#include "binding/workers.h"

namespace scout {
namespace {

void check_lines(const char* name, const std::vector<LinearPart>& parts, int64_t wanted) {
    if (lines_of(parts) != wanted)
        refuse(std::string(name) + " has " + std::to_string(lines_of(parts)) + " lines: it must have " +
               std::to_string(wanted));
}

}  // namespace

nb::tuple Workers::project_heads(const Tensor& x, const MatrixArgument& weight, const HeadPlacingArgument& how) {
    const float* from = float_rows("x", x);
    const auto [T, width] = shape<2>("x", x, "[T, A]");
    const int64_t D = shape<2>("cos", std::get<4>(how).first, "[T, D]")[1];
    HeadsCall call{{from, 1, T, width, 0, matrix_parts("weight", weight, width), nullptr}, {}};
    const int64_t O = call.product.O = lines_of(call.product.parts), heads = D > 0 ? O / D : 0;
    if (heads == 0 || O % D != 0)
        refuse("weight has " + std::to_string(O) + " lines: it must have some, a multiple of D, " + std::to_string(D));
    call.place = placing(how, T, heads, D);
    const int64_t queries = call.place.queries, others = (heads - queries) / 2;
    const auto q = new_like<float>(x, {T, queries, D});
    const auto k = new_like<float>(x, {T, others, D}), v = new_like<float>(x, {T, others, D});
    call.place.q = q.data, call.place.k = k.data, call.place.v = v.data;
    if (T > 0) run([&] { return make_heads_work(kernels_, call, threads_.count()); });
    return nb::make_tuple(q.tensor, k.tensor, v.tensor);
}

nb::tuple Workers::end_layer(const Tensor& x, const Tensor& attended, const LayerEndArgument& by) {
    const auto& [output, post_norm, gate_up, down, next_norm, eps] = by;
    const auto [T, E] = shape<2>("x", x, "[T, E]");
    LayerEndCall call{};
    call.B = T, call.E = E, call.A = shape<2>("attended", attended, "[T, A]")[1], call.eps = float(eps);
    call.x = exact<float>("x", x, {T, E}), call.attended = exact<float>("attended", attended, {T, call.A});
    call.post_norm = exact<float>("post_norm", post_norm, {E});
    call.next_norm = exact<float>("next_norm", next_norm, {E});
    call.output = matrix_parts("output", output, call.A), call.gate_up = matrix_parts("gate_up", gate_up, E);
    call.I = lines_of(call.gate_up) / 2, call.down = matrix_parts("down", down, call.I);
    if (E == 0 || call.I == 0) refuse("x is " + text(x, "shape") + " and gate_up has " + std::to_string(2 * call.I) +
                                      " lines: there must be columns and lines");
    check_lines("output", call.output, E), check_lines("gate_up", call.gate_up, 2 * call.I);
    check_lines("down", call.down, E);
    const auto sum = new_like<float>(x, {T, E}), out = new_like<float>(x, {T, E});
    call.sum = sum.data, call.out = out.data;
    if (T > 0) run([&] { return make_layer_end_work(kernels_, call, threads_.count()); });
    return nb::make_tuple(sum.tensor, out.tensor);
}

}  // namespace scout
