// The methods of Workers that compute a few rows of a layer, float32 each.
#include "binding/workers.h"

namespace scout {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

DType dtype_of(const std::string& name, const Tensor& tensor) {
    const Element elements[] = {kElement<float>, kBFloat16Element, kElement<uint16_t>};
    for (int i = kFloat32; i <= kFloat16; ++i)
        if (is_on_cpu(tensor) && has(tensor, elements[i])) return static_cast<DType>(i);
    refuse(name + " is " + text(tensor, "dtype") + " on " + text(tensor, "device") +
           ": it must be float32, bfloat16 or float16 on the CPU");
}

const float* rows(const char* name, const Tensor& x) {
    check_on_cpu(name, x);
    if (!has(x, kElement<float>) || !is_contiguous(x, 0))
        refuse(std::string(name) + " is " + text(x, "dtype") + " with strides " + text(x, "stride") +
               ": it must be float32 and contiguous");
    return address<float>(x);
}

// Matrices [.., O, I] of one dtype.
LinearPart matrices(const Tensor& weight, DType dtype) {
    const int dims = weight.memory.ndim;
    const int64_t element = kElementBytes[dtype];
    return {dtype, address<char>(weight), weight.stride(0) * element, weight.size(dims - 1) * element,
            weight.size(dims - 2)};
}

// A matrix of `width` columns as GGUF keeps it: uint8 [lines, bytes of a line], of a kind by its number there.
LinearPart stored_lines(const Tensor& data, int number, int64_t width) {
    check_dims("a stored matrix", data, 2, "[rows, bytes of a row]");
    const StoredFormat* format = stored_format(number);
    if (!format) refuse("a stored matrix is of the kind " + std::to_string(number) + ", which no kernel reads");
    const int64_t bytes = width / format->block * format->bytes;
    if (!has(data, kElement<uint8_t>) || !is_contiguous(data, 0) || width % format->block != 0 ||
        data.size(1) != bytes)
        refuse("a stored matrix of the kind " + std::to_string(number) + " is " + text(data, "dtype") + " " +
               text(data, "shape") + " with strides " + text(data, "stride") + ": for rows of " +
               std::to_string(width) + " it must be torch.uint8 [rows, " + std::to_string(bytes) +
               "], contiguous, in blocks of " + std::to_string(format->block));
    return {format->kind, address<char>(data), 0, bytes, data.size(0)};
}

}  // namespace

void Workers::causal(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& out) {
    const auto [n, H, G, D] = shape<4>("q", q, "[n, H, G, D]");
    const auto [T, heads, width] = shape<3>("k", k, "[T, H, D]");
    check_dims("v", v, 3, "[T, H, D]");
    const DType dtype = dtype_of("q", q);
    const char* from[3];
    int i = 0;
    for (const Tensor* tensor : {&q, &k, &v}) {
        const bool fits = dtype_of("k or v", *tensor) == dtype && is_contiguous(*tensor, 0);
        if (!fits || (tensor == &v && !std::equal(k.memory.shape, k.memory.shape + 3, v.memory.shape)))
            refuse("q, k and v are " + text(q, "dtype") + " " + text(q, "shape") + ", " + text(k, "dtype") + " " +
                   text(k, "shape") + " and " + text(v, "dtype") + " " + text(v, "shape") +
                   ": they must be contiguous and of one dtype, [n, H, G, D] and [T, H, D] twice");
        from[i++] = address<char>(*tensor);
    }
    if (heads != H || width != D || n > T || G < 1 || D < 1)
        refuse("q is " + text(q, "shape") + " and k " + text(k, "shape") +
               ": they must be [n, H, G, D] and [T, H, D], n at most T, no G or D of 0");
    const CausalCall call{dtype, from[0], from[1], from[2], n, T, H, G, D, float(scale),
                          exact<float>("out", out, {n, H, G, D})};
    if (n * H > 0) run([&] { return make_causal_work(kernels_, call, threads_.count()); });
}

nb::object Workers::linear(const Tensor& x, const Tensor& weight) {
    const float* from = rows("x", x);
    const DType dtype = dtype_of("weight", weight);
    const int dims = weight.memory.ndim;
    bool fits = x.memory.ndim == 2 && (dims == 2 || dims == 3);
    fits = fits && weight.size(dims - 1) == x.size(1) && (dims == 2 || weight.size(0) == x.size(0));
    if (!fits || !is_contiguous(weight, dims - 2))
        refuse("x is " + text(x, "shape") + " and weight " + text(weight, "shape") + " with strides " +
               text(weight, "stride") + ": they must be [T, A] and [B, A] or [T, B, A], matrices contiguous");
    const int64_t T = x.size(0), O = weight.size(dims - 2);
    const auto out = new_like<float>(x, {T, O});
    const bool one = dims == 2;
    multiply({from, one ? 1 : T, one ? T : 1, x.size(1), O, {matrices(weight, dtype)}, out.data});
    return out.tensor;
}

nb::object Workers::linear_stored(const Tensor& x, const std::vector<std::pair<Tensor, int>>& parts) {
    LinearCall call{rows("x", x), 1, 0, 0, 0, {}, nullptr};
    check_dims("x", x, 2, "[T, A]");
    call.B = x.size(0), call.I = x.size(1);
    for (const auto& [data, number] : parts) {
        call.parts.push_back(stored_lines(data, number, call.I));
        call.O += call.parts.back().lines;
    }
    const auto out = new_like<float>(x, {call.B, call.O});
    call.out = out.data;
    multiply(call);
    return out.tensor;
}

void Workers::expand(const Tensor& data, int number, const Tensor& out) {
    check_dims("out", out, 2, "[rows, columns]");
    const LinearPart part = stored_lines(data, number, out.size(1));
    const bool wide = has(out, kElement<float>);
    if (part.kind < kStored || !(wide || has(out, kBFloat16Element)) || !is_contiguous(out, 0) ||
        out.size(0) != part.lines)
        refuse("out is " + text(out, "dtype") + " " + text(out, "shape") + " for " + std::to_string(part.lines) +
               " rows of the kind " + std::to_string(number) +
               ": it must be float32 or bfloat16 and contiguous, and the kind quantised");
    const ExpandCall call{part.kind, reinterpret_cast<const uint8_t*>(part.weight), part.line_bytes, part.lines,
                          out.size(1), wide ? kFloat32 : kBFloat16, address<char>(out)};
    run([&] { return make_expand_work(kernels_, call, threads_.count()); });
}

nb::object Workers::project(const Tensor& x, const Tensor& basis) {
    const float* from = rows("x", x);
    const DType dtype = dtype_of("basis", basis);
    bool fits = x.memory.ndim == 3 && basis.memory.ndim == 3;
    fits = fits && basis.size(2) == x.size(2) && basis.size(0) == x.size(0);
    if (!fits || !is_contiguous(basis, 1))
        refuse("x is " + text(x, "shape") + " and basis " + text(basis, "shape") + " with strides " +
               text(basis, "stride") + ": they must be [T, G, D] and [T, C, D], matrices contiguous");
    const int64_t M = x.size(0), B = x.size(1), O = basis.size(1);
    const auto out = new_like<float>(x, {M, B, O});
    multiply({from, M, B, x.size(2), O, {matrices(basis, dtype)}, out.data});
    return out.tensor;
}

void Workers::multiply(const LinearCall& call) {
    run([&] { return make_linear_work(kernels_, call, threads_.count()); });
}

nb::object Workers::rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    const float *from = rows("x", x), *factors = rows("weight", weight);
    const int dims = weight.memory.ndim, first = x.memory.ndim - dims;
    bool fits = (dims == 1 || dims == 2) && first >= 0;
    int64_t repeats = 1;
    for (int axis = 0; fits && axis < first; ++axis) repeats *= x.size(axis);
    for (int axis = 0; fits && axis < dims; ++axis)
        fits = weight.size(axis) > 0 && weight.size(axis) == x.size(first + axis);
    if (!fits)
        refuse("x is " + text(x, "shape") + " and weight " + text(weight, "shape") + ": the last axes must agree");
    const int64_t width = weight.size(dims - 1), lines = dims == 2 ? weight.size(0) : 1, step = lines * width;
    nb::object out = new_empty(x, x.memory.shape, size_t(x.memory.ndim));
    Tensor memory;
    view(out, memory);
    float* to = address<float>(memory);
    for (int64_t at = 0; at < repeats * step; at += step)
        kernels_.rms_norm(from + at, factors, float(eps), lines, width, to + at);
    return out;
}

nb::object Workers::rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    const float *from = rows("x", x), *cosines = rows("cos", cos), *sines = rows("sin", sin);
    const auto fits = [&x](const Tensor& table) {
        return table.memory.ndim == 2 && table.size(0) == x.size(0) && table.size(1) == x.size(2);
    };
    if (x.memory.ndim != 3 || !fits(cos) || !fits(sin) || x.size(2) % 2 != 0)
        refuse("x is " + text(x, "shape") + ", cos " + text(cos, "shape") + " and sin " + text(sin, "shape") +
               ": they must be [T, heads, D], [T, D] and [T, D] with an even D");
    const int64_t T = x.size(0), heads = x.size(1), D = x.size(2), step = heads * D;
    const auto out = new_like<float>(x, {T, heads, D});
    for (int64_t t = 0; t < T; ++t)
        kernels_.rotate(from + t * step, cosines + t * D, sines + t * D, heads, D, out.data + t * step);
    return out.tensor;
}

nb::object Workers::swiglu(const Tensor& x) {
    const float* from = rows("x", x);
    if (x.memory.ndim != 2 || x.size(1) % 2 != 0) refuse("x is " + text(x, "shape") + ": it must be [T, 2 * I]");
    const auto out = new_like<float>(x, {x.size(0), x.size(1) / 2});
    kernels_.swiglu(from, x.size(0), x.size(1) / 2, out.data);
    return out.tensor;
}

}  // namespace scout
