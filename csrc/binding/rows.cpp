// The methods of Workers that compute rows of a layer.
#include "binding/rows.h"

#include "binding/workers.h"

namespace scout {

void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

DType number_dtype(const std::string& name, const Tensor& tensor) {
    const Element elements[] = {kElement<float>, kBFloat16Element, kElement<uint16_t>};
    for (int i = kFloat32; i <= kFloat16; ++i)
        if (is_on_cpu(tensor) && has(tensor, elements[i])) return static_cast<DType>(i);
    refuse(name + " is " + text(tensor, "dtype") + " on " + text(tensor, "device") +
           ": it must be float32, bfloat16 or float16 on the CPU");
}

const float* float_rows(const char* name, const Tensor& x) {
    check_on_cpu(name, x);
    if (!has(x, kElement<float>) || !is_contiguous(x, 0))
        refuse(std::string(name) + " is " + text(x, "dtype") + " with strides " + text(x, "stride") +
               ": it must be float32 and contiguous");
    return address<float>(x);
}

LinearPart matrices(const Tensor& weight, DType dtype) {
    const int dims = weight.memory.ndim;
    const int64_t element = kElementBytes[dtype];
    return {dtype, address<char>(weight), weight.stride(0) * element, weight.size(dims - 1) * element,
            weight.size(dims - 2)};
}

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

std::vector<LinearPart> matrix_parts(const char* name, const MatrixArgument& parts, int64_t width) {
    std::vector<LinearPart> lines;
    for (const auto& [data, number] : parts) {
        if (number) {
            lines.push_back(stored_lines(data, *number, width));
            continue;
        }
        const DType dtype = number_dtype(name, data);
        if (data.memory.ndim != 2 || data.size(1) != width || !is_contiguous(data, 0))
            refuse(std::string(name) + " is " + text(data, "shape") + " with strides " + text(data, "stride") +
                   ": it must be [lines, " + std::to_string(width) + "] and contiguous");
        lines.push_back(matrices(data, dtype));
    }
    return lines;
}

int64_t lines_of(const std::vector<LinearPart>& parts) {
    int64_t lines = 0;
    for (const LinearPart& part : parts) lines += part.lines;
    return lines;
}

namespace {

// Contiguous rows of float32 (type 0) or bfloat16 (type 1).
struct Rows {
    int type;
    int64_t bytes;  // of a number
    char* data;
    void* at(int64_t number) const { return data + number * bytes; }
};
struct NewRows : Rows {
    nb::object tensor;
};

Rows rows_of(const char* name, const Tensor& x) {
    check_on_cpu(name, x);
    const bool wide = has(x, kElement<float>);
    if (!(wide || has(x, kBFloat16Element)) || !is_contiguous(x, 0))
        refuse(std::string(name) + " is " + text(x, "dtype") + " with strides " + text(x, "stride") +
               ": it must be float32 or bfloat16, and contiguous");
    check_aligned(address<char>(x), wide ? kFloat32 : kBFloat16);
    return {wide ? 0 : 1, wide ? 4 : 2, address<char>(x)};
}

// Uninitialised rows of the dtype of `like`.
NewRows new_rows(const Tensor& like, const int64_t* sizes, size_t dims) {
    nb::object tensor = new_empty(like, sizes, dims);
    Tensor memory;
    view(tensor, memory);
    return {rows_of("a new tensor", memory), std::move(tensor)};
}
NewRows new_rows(const Tensor& like, Sizes sizes) { return new_rows(like, sizes.begin(), sizes.size()); }

}  // namespace

void Workers::causal(const Tensor& q, const Tensor& k, const Tensor& v, double scale, const Tensor& out) {
    const auto [n, H, G, D] = shape<4>("q", q, "[n, H, G, D]");
    const auto [T, heads, width] = shape<3>("k", k, "[T, H, D]");
    check_dims("v", v, 3, "[T, H, D]");
    const DType dtype = number_dtype("q", q);
    const char* from[3];
    int i = 0;
    for (const Tensor* tensor : {&q, &k, &v}) {
        const bool fits = number_dtype("k or v", *tensor) == dtype && is_contiguous(*tensor, 0);
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
    const float* from = float_rows("x", x);
    const DType dtype = number_dtype("weight", weight);
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

nb::object Workers::linear_stored(const Tensor& x, const std::vector<std::pair<Tensor, int>>& parts, bool many) {
    LinearCall call{float_rows("x", x), 1, 0, 0, 0, {}, nullptr};
    check_dims("x", x, 2, "[T, A]");
    call.B = x.size(0), call.I = x.size(1);
    for (const auto& [data, number] : parts) {
        call.parts.push_back(stored_lines(data, number, call.I));
        call.O += call.parts.back().lines;
        if (many && !(has_many_rows() && call.parts.back().kind >= kStored))
            refuse("many rows are not multiplied with the kind " + std::to_string(number) + " by kernels of " + isa());
    }
    const auto out = new_like<float>(x, {call.B, call.O});
    call.out = out.data;
    if (many) run([&] { return make_many_rows_work(kernels_, call, threads_.count()); });
    else multiply(call);
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
    const float* from = float_rows("x", x);
    const DType dtype = number_dtype("basis", basis);
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

// Below so many bytes of rows, the thread that calls computes them at once.
constexpr int64_t kSmallRows = 1 << 16;

void Workers::compute_rows(const RowsCall& call) {
    if (call.rows * call.row_bytes <= kSmallRows) return call.compute(0, call.rows, scratch_memory(call.scratch));
    run([&] { return make_rows_work(call, threads_.count()); });
}

nb::object Workers::rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    const Rows from = rows_of("x", x);
    const float* factors = float_rows("weight", weight);
    const int dims = weight.memory.ndim, first = x.memory.ndim - dims;
    bool fits = (dims == 1 || dims == 2) && first >= 0;
    int64_t count = 1;
    for (int axis = 0; fits && axis < x.memory.ndim - 1; ++axis) count *= x.size(axis);
    for (int axis = 0; fits && axis < dims; ++axis)
        fits = weight.size(axis) > 0 && weight.size(axis) == x.size(first + axis);
    if (!fits)
        refuse("x is " + text(x, "shape") + " and weight " + text(weight, "shape") + ": the last axes must agree");
    const int64_t width = weight.size(dims - 1), lines = dims == 2 ? weight.size(0) : 1;
    const NewRows out = new_rows(x, x.memory.shape, size_t(x.memory.ndim));
    compute_rows({count / lines, 2 * lines * width * from.bytes, 2 * width, [&](int64_t begin, int64_t end, float* scratch) {
        const int64_t at = begin * lines * width;
        kernels_.norm_rows[from.type]({from.at(at), nullptr, factors, float(eps), (end - begin) * lines, lines, width,
                                       scratch, nullptr, out.at(at)});
    }});
    return out.tensor;
}

nb::tuple Workers::add_norm(const Tensor& x, const Tensor& change, const Tensor& weight, double eps) {
    const Rows from = rows_of("x", x), added = rows_of("change", change);
    const float* factors = float_rows("weight", weight);
    if (x.memory.ndim != 2 || change.memory.ndim != 2 || weight.memory.ndim != 1 || added.type != from.type ||
        change.size(0) != x.size(0) || change.size(1) != x.size(1) || weight.size(0) != x.size(1) || x.size(1) == 0)
        refuse("x is " + text(x, "dtype") + " " + text(x, "shape") + ", change " + text(change, "dtype") + " " +
               text(change, "shape") + " and weight " + text(weight, "shape") +
               ": they must be [T, A], [T, A] and [A], x and change of one dtype");
    const int64_t width = x.size(1);
    const NewRows sum = new_rows(x, x.memory.shape, 2), out = new_rows(x, x.memory.shape, 2);
    compute_rows({x.size(0), 4 * width * from.bytes, 2 * width, [&](int64_t begin, int64_t end, float* scratch) {
        const int64_t at = begin * width;
        kernels_.norm_rows[from.type]({from.at(at), added.at(at), factors, float(eps), end - begin, 1, width, scratch,
                                       sum.at(at), out.at(at)});
    }});
    return nb::make_tuple(sum.tensor, out.tensor);
}

PlaceRun placing(const HeadPlacingArgument& how, int64_t T, int64_t heads, int64_t D) {
    const auto& [queries, bias, norm, eps, rope, paired] = how;
    if (queries < 0 || queries > heads || (heads - queries) % 2 != 0 || D % 2 != 0 || D == 0)
        refuse("x is " + text({T, heads, D}) + " with " + std::to_string(queries) +
               " queries: it must be [T, heads, D] with an even D, as many keys as values");
    const int64_t rotated = (heads + queries) / 2;
    const float* biases = bias ? exact<float>("bias", *bias, {heads * D}) : nullptr;
    const int64_t lines = norm ? shape<2>("norm", *norm, "[heads, D]")[0] : 0;
    const float* norms = norm ? exact<float>("norm", *norm, {std::max(lines, rotated), D}) : nullptr;
    const float *cos = exact<float>("cos", rope.first, {T, D}), *sin = exact<float>("sin", rope.second, {T, D});
    return {nullptr, biases, norms, float(eps), cos, sin, T, heads, queries, D, paired, nullptr, nullptr, nullptr, nullptr};
}

nb::tuple Workers::place_heads(const Tensor& x, const HeadPlacingArgument& how) {
    const Rows from = rows_of("x", x);
    const auto [T, heads, D] = shape<3>("x", x, "[T, heads, D]");
    const PlaceRun all = placing(how, T, heads, D);
    const int64_t others = (heads - all.queries) / 2;
    const NewRows q = new_rows(x, {T, all.queries, D}), k = new_rows(x, {T, others, D}), v = new_rows(x, {T, others, D});
    const int64_t row = heads * D, q_row = all.queries * D, k_row = others * D, width = D;
    compute_rows({T, 2 * row * from.bytes, 2 * D, [&](int64_t begin, int64_t end, float* scratch) {
        PlaceRun run = all;
        run.x = from.at(begin * row), run.scratch = scratch, run.tokens = end - begin;
        run.cos += begin * width, run.sin += begin * width;
        run.q = q.at(begin * q_row), run.k = k.at(begin * k_row), run.v = v.at(begin * k_row);
        kernels_.place_heads[from.type](run);
    }});
    return nb::make_tuple(q.tensor, k.tensor, v.tensor);
}

nb::object Workers::swiglu(const Tensor& x) {
    const Rows from = rows_of("x", x);
    if (x.memory.ndim != 2 || x.size(1) % 2 != 0) refuse("x is " + text(x, "shape") + ": it must be [T, 2 * I]");
    const int64_t width = x.size(1) / 2;
    const NewRows out = new_rows(x, {x.size(0), width});
    compute_rows({x.size(0), 3 * width * from.bytes, 2 * width, [&](int64_t begin, int64_t end, float* scratch) {
        kernels_.swiglu[from.type]({from.at(2 * begin * width), end - begin, width, scratch, out.at(begin * width)});
    }});
    return out.tensor;
}

}  // namespace scout
