// The methods of Workers that make digests, score them and choose by them.
#include "binding/workers.h"

namespace scout {
namespace {

constexpr const char* kQueries = "[B, H, G, D]";

std::array<int64_t, 4> queries(const Tensor& q) {
    const auto sizes = shape<4>("q", q, kQueries);
    if (sizes[2] < 1 || sizes[3] < 1)
        throw std::invalid_argument("q is " + text(q, "shape") + ": it must be [B, H, G, D], no G or D of 0");
    return sizes;
}

// Queries, and what they are scored with; of its result nothing.
ScoreCall score_call(const Tensor& q, const Tensor& list, const Tensor& closed, int64_t page_count) {
    const auto [B, H, G, D] = queries(q);
    const Table pages = table("pages", list, {B, H}, "[B, H, N]");
    const int64_t* blocks_of = exact<int64_t>("closed", closed, {B});
    return {exact<float>("q", q, {B, H, G, D}), B, H, G, D, list.size(2), page_count, pages, blocks_of, nullptr};
}

KeyCodeLayer key_code_layer(const Tensor& codes, const Tensor& bounds, int64_t H, int64_t D) {
    check_on_cpu("codes", codes);
    const int64_t P = codes.memory.ndim == 5 ? std::max<int64_t>(1, codes.size(3)) : 1;
    uint8_t* code_memory = pages<uint8_t>("codes", codes, {H, code_words(D), P, 4});
    uint16_t* bound_memory = pages<uint16_t>("bounds", bounds, {H, 2, D}, 3);
    if (bounds.size(0) != codes.size(0))
        throw std::invalid_argument("codes have " + std::to_string(codes.size(0)) + " pages and bounds " +
                                    std::to_string(bounds.size(0)) + ": they must have the same");
    return {code_memory,      bound_memory,     codes.stride(0), codes.stride(1),
            bounds.stride(0), bounds.stride(1), bounds.stride(2), P};
}

// New results of a call: blocks, their wishes, and those of all blocks.
nb::tuple new_top_blocks(const Tensor& floats, const Tensor& closed, TopBlocksCall& call) {
    check("count", call.count, call.N, "the blocks that have scores");
    const auto wishes = new_like<float>(floats, {call.B, call.H, call.N});
    const auto blocks = new_like<int64_t>(closed, {call.B, call.H, call.count});
    const auto top_wishes = new_like<float>(floats, {call.B, call.H, call.count});
    call.wishes = wishes.data, call.blocks = blocks.data, call.top_wishes = top_wishes.data;
    return nb::make_tuple(blocks.tensor, top_wishes.tensor, wishes.tensor);
}

}  // namespace

nb::object Workers::score_min_max(const Tensor& q, const Tensor& digests, const Tensor& list,
                                  const Tensor& closed) {
    const auto [B, H, G, D] = queries(q);
    const float* memory = pages<float>("digests", digests, {H, 2 * D});
    ScoreCall call = score_call(q, list, closed, digests.size(0));
    const auto out = new_like<float>(q, {B, H, G, call.N});
    call.out = out.data;
    const MinMaxLayer layer{memory, digests.stride(0), digests.stride(1)};
    run([&] { return make_score_work(kernels_, call, layer, threads_.count()); });
    return out.tensor;
}

nb::object Workers::score_key_codes(const Tensor& q, const Tensor& codes, const Tensor& bounds, const Tensor& list,
                                    const Tensor& closed) {
    const auto [B, H, G, D] = queries(q);
    const KeyCodeLayer layer = key_code_layer(codes, bounds, H, D);
    ScoreCall call = score_call(q, list, closed, codes.size(0));
    const auto out = new_like<float>(q, {B, H, G, call.N});
    call.out = out.data;
    run([&] { return make_score_work(kernels_, call, layer, threads_.count()); });
    return out.tensor;
}

void Workers::write_key_codes(const CodesRequestArgument& request) {
    const auto& [k, basis, codes, bounds, list] = request;
    const auto [n, H, P, D] = shape<4>("k", k, "[n, H, P, D]");
    if (!has(k, kElement<float>) || !is_contiguous(k, 3) || P < 1 || D < 1)
        throw std::invalid_argument("k is " + text(k, "dtype") + " " + text(k, "shape") + " with strides " +
                                    text(k, "stride") +
                                    ": it must be float32 [n, H, P, D], no P or D of 0, the channels contiguous");
    WriteCodesCall call{};
    call.k = address<float>(k), call.n = n, call.H = H, call.P = P, call.D = D;
    call.k_block = k.stride(0), call.k_head = k.stride(1), call.k_position = k.stride(2);
    call.C = basis && basis->first.memory.ndim == 4 ? basis->first.size(2) : D;
    call.layer = key_code_layer(codes, bounds, H, call.C), call.page_count = codes.size(0);
    if (call.layer.positions != P)
        throw std::invalid_argument("k is " + text(k, "shape") + " and codes " + text(codes, "shape") +
                                    ": they must be [n, H, P, D] and [S, H, W, P, 4]");
    call.pages = exact<int64_t>("pages", list, {n});
    if (basis) {
        const auto& [matrices, which] = *basis;
        call.basis = pages<float>("basis", matrices, {H, call.C, D}, 1);
        call.basis_rows = matrices.size(0), call.basis_row = matrices.stride(0);
        const bool one = which.memory.ndim == 1 && which.size(0) == 1;
        call.which = exact<int64_t>("which", which, {one ? 1 : n}), call.which_stride = one ? 0 : 1;
    }
    if (n * H > 0) run([&] { return make_write_codes_work(kernels_, call, threads_.count()); });
}

nb::tuple Workers::top_blocks(const Tensor& scores, const Tensor& closed, int64_t count,
                              std::pair<int64_t, int64_t> always, bool largest) {
    const auto [B, H, G, N] = shape<4>("scores", scores, "[B, H, G, N] with G at least 1");
    if (G < 1) throw std::invalid_argument("scores are " + text(scores, "shape") + ": they must have G at least 1");
    TopBlocksCall call{exact<float>("scores", scores, {B, H, G, N}), B, H, G, N, exact<int64_t>("closed", closed, {B}),
                       always.first, always.second, count, largest, nullptr, nullptr, nullptr};
    const nb::tuple results = new_top_blocks(scores, closed, call);
    run([&] { return make_top_blocks_work(kernels_, call, threads_.count()); });
    return results;
}

nb::tuple Workers::top_by_key_codes(const TopRequestArgument& request) {
    const auto& [q, basis, codes, bounds, list, closed, scale, how] = request;
    const auto& [count, always, largest] = how;
    const auto [B, H, G, width] = queries(q);
    const int64_t C = basis ? shape<4>("basis", *basis, "[B, H, C, D]")[2] : width;
    TopByCodesCall call{};
    call.layer = key_code_layer(codes, bounds, H, C);
    call.score = score_call(q, list, closed, codes.size(0)), call.score.D = C, call.scale = float(scale);
    if (basis) {
        const int64_t apart = basis->stride(H > 1 ? 1 : 0), element = sizeof(float);
        if (basis->size(0) != B || basis->size(1) != H || C < 1 || basis->size(3) != width || !is_contiguous(*basis, 2) ||
            !has(*basis, kElement<float>) || (B > 1 && basis->stride(0) != H * apart))
            throw std::invalid_argument("basis is " + text(*basis, "dtype") + " " + text(*basis, "shape") +
                                        " with strides " + text(*basis, "stride") + ": it must be float32 [B, H, C, D], " +
                                        "matrices contiguous and equally far apart");
        call.basis = {call.score.q, B * H, G, width, C,
                      {{kFloat32, address<char>(*basis), apart * element, width * element, C}}, nullptr};
    }
    call.top = {nullptr, B, H, G, call.score.N, call.score.closed, always.first, always.second, count, largest,
                nullptr, nullptr, nullptr};
    const nb::tuple results = new_top_blocks(q, closed, call.top);
    if (B * H * call.score.N > 0) run([&] { return make_top_by_codes_work(kernels_, call, threads_.count()); });
    return results;
}

}  // namespace scout
