// Work in stages: what a layer computes around its attention, and the choice of blocks by codes, against the single works.
#include "testing.h"

namespace testing {
namespace {

// A matrix of float32 [lines, width], and what it makes of rows.
struct Matrix {
    Array<float> numbers;
    int64_t lines, width;

    Matrix(Dice& dice, int64_t lines, int64_t width) : numbers(dice.numbers(lines * width)), lines(lines), width(width) {}

    std::vector<LinearPart> parts() const {
        const int64_t line = width * int64_t(sizeof(float));
        return {{kFloat32, reinterpret_cast<const char*>(numbers.data()), lines * line, line, lines}};
    }
    Array<float> times(const Kernels& kernels, WorkerThreads& workers, const Array<float>& x) const {
        const int64_t rows = x.size() / width;
        Array<float> out(rows * lines);
        finish(workers, make_linear_work(kernels, {x.data(), 1, rows, width, lines, parts(), out.data()}, workers.count()));
        return out;
    }
};

void expect_same(const char* what, const char* isa, const Array<float>& got, const Array<float>& want) {
    for (int64_t i = 0; i < got.size(); ++i) expect(what, isa, got[i], want[i], 0);
}

void check_layer_end(const Kernels& kernels, WorkerThreads& workers, int64_t B, int64_t A, int64_t E, int64_t I) {
    Dice dice;
    const Array<float> x = dice.numbers(B * E), attended = dice.numbers(B * A);
    const Array<float> post_norm = dice.numbers(E), next_norm = dice.numbers(E);
    const Matrix output(dice, E, A), gate_up(dice, 2 * I, E), down(dice, E, I);
    Array<float> scratch(2 * std::max(E, I)), sum(B * E), normed(B * E), gated(B * I), end(B * E), out(B * E);
    const Array<float> change = output.times(kernels, workers, attended);
    kernels.norm_rows[0]({x.data(), change.data(), post_norm.data(), 0.01f, B, 1, E, scratch.data(), sum.data(), normed.data()});
    const Array<float> gates = gate_up.times(kernels, workers, normed);
    kernels.swiglu[0]({gates.data(), B, I, scratch.data(), gated.data()});
    const Array<float> fed = down.times(kernels, workers, gated);
    kernels.norm_rows[0]({sum.data(), fed.data(), next_norm.data(), 0.01f, B, 1, E, scratch.data(), end.data(), out.data()});
    Array<float> got_sum(B * E), got_out(B * E);
    const LayerEndCall call{x.data(), attended.data(), B, A, E, I, output.parts(), gate_up.parts(), down.parts(),
                            post_norm.data(), next_norm.data(), 0.01f, got_sum.data(), got_out.data()};
    for (int again = 0; again < 20; ++again) {
        finish(workers, make_layer_end_work(kernels, call, workers.count()));
        expect_same("residual stream", kernels.name, got_sum, end), expect_same("its norm", kernels.name, got_out, out);
    }
}

void check_heads(const Kernels& kernels, WorkerThreads& workers, int64_t B, int64_t A) {
    constexpr int64_t D = 24, heads = 7, queries = 3, others = 2;
    Dice dice;
    const Matrix weight(dice, heads * D, A);
    const Array<float> x = dice.numbers(B * A), bias = dice.numbers(heads * D), norm = dice.numbers(heads * D);
    const Array<float> cos = dice.numbers(B * D), sin = dice.numbers(B * D);
    const Array<float> projected = weight.times(kernels, workers, x);
    Array<float> scratch(2 * D), q(B * queries * D), k(B * others * D), v(B * others * D);
    PlaceRun run{projected.data(), bias.data(), norm.data(), 0.01f, cos.data(), sin.data(), B, heads, queries, D,
                 false, scratch.data(), q.data(), k.data(), v.data()};
    kernels.place_heads[0](run);
    Array<float> got_q(q.size()), got_k(k.size()), got_v(v.size());
    run.q = got_q.data(), run.k = got_k.data(), run.v = got_v.data();
    const HeadsCall call{{x.data(), 1, B, A, heads * D, weight.parts(), nullptr}, run};
    finish(workers, make_heads_work(kernels, call, workers.count()));
    expect_same("queries", kernels.name, got_q, q), expect_same("keys", kernels.name, got_k, k);
    expect_same("values", kernels.name, got_v, v);
}

void check_top_by_codes(const Kernels& kernels, WorkerThreads& workers, int64_t N, bool with_basis) {
    constexpr int64_t B = 3, H = 2, G = 3, D = 32, P = 16, S = 40, count = 3;
    Dice dice;
    const Array<float> q = dice.numbers(B * H * G * D), basis = dice.numbers(B * H * D * D);
    Array<int32_t> codes = dice.indices(S * H * code_words(D) * P, 1 << 30);
    const Array<int32_t> pages = dice.indices(B * H * N, S);
    Array<uint16_t> bounds(S * H * 2 * D);
    for (int64_t i = 0; i < bounds.size(); ++i) bounds[i] = uint16_t(0x3000 + dice.below(0x800));
    Array<int64_t> closed(B), blocks(B * H * count), got_blocks(B * H * count);
    for (int64_t b = 0; b < B; ++b) closed[b] = N - b * N / 4;
    const KeyCodeLayer layer{reinterpret_cast<uint8_t*>(codes.data()), bounds.data(), H * code_words(D) * P * 4,
                             code_words(D) * P * 4, H * 2 * D, 2 * D, D, P};
    const float scale = 0.25f;
    LinearCall product{q.data(), B * H, G, D, D, {}, nullptr};
    const int64_t line = D * int64_t(sizeof(float));
    if (with_basis) product.parts = {{kFloat32, reinterpret_cast<const char*>(basis.data()), D * line, line, D}};
    Array<float> scaled(q.size()), scores(B * H * G * N), wishes(B * H * N), got_wishes(B * H * N);
    Array<float> top(B * H * count), got_top(B * H * count);
    if (with_basis) {
        LinearCall own = product;
        own.out = scaled.data();
        finish(workers, make_linear_work(kernels, own, workers.count()));
    } else {
        std::copy(q.data(), q.data() + q.size(), scaled.data());
    }
    for (int64_t i = 0; i < scaled.size(); ++i) scaled[i] *= scale;
    ScoreCall score{scaled.data(), B, H, G, D, N, S, {pages.data(), H * N, N}, closed.data(), scores.data()};
    finish(workers, make_score_work(kernels, score, layer, workers.count()));
    TopBlocksCall choice{scores.data(), B, H, G, N, closed.data(), 1, 1, count, false, wishes.data(), blocks.data(), top.data()};
    finish(workers, make_top_blocks_work(kernels, choice, workers.count()));
    score.q = q.data(), score.out = nullptr;
    choice.scores = nullptr, choice.wishes = got_wishes.data(), choice.blocks = got_blocks.data();
    choice.top_wishes = got_top.data();
    finish(workers, make_top_by_codes_work(kernels, {product, scale, score, layer, choice}, workers.count()));
    expect_same("wishes", kernels.name, got_wishes, wishes), expect_same("the largest", kernels.name, got_top, top);
    for (int64_t i = 0; i < blocks.size(); ++i) expect("block", kernels.name, double(got_blocks[i]), double(blocks[i]), 0);
}

}  // namespace

void test_layers(const Kernels& kernels, WorkerThreads& workers) {
    for (const int64_t B : {1, 3}) {
        check_layer_end(kernels, workers, B, 24, 40, 70), check_layer_end(kernels, workers, B, 64, 576, 300);
        check_heads(kernels, workers, B, 33);
    }
    for (const int64_t N : {4, 33, 300})
        for (const bool with_basis : {false, true}) check_top_by_codes(kernels, workers, N, with_basis);
}

}  // namespace testing
