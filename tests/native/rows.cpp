// What a layer computes of a few rows, merged partials, and reading.
#include "testing.h"

namespace testing {
namespace {

void check_linear(const Kernels& kernels, WorkerThreads& workers, int64_t M, int64_t B, int64_t I, int64_t O,
                  DType dtype) {
    Dice dice;
    const Array<float> x = dice.numbers(M * B * I);
    const Stored weight(dtype, M * O * I, dice);
    Array<float> out(M * B * O);
    const int64_t line = I * (dtype == kFloat32 ? 4 : 2);
    const LinearCall call{x.data(), M, B, I, O, {{dtype, weight.bytes.data(), O * line, line, O}}, out.data()};
    finish(workers, make_linear_work(kernels, call, workers.count()));
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = i / O, line = row / B * O + i % O;
        double want = 0;
        for (int64_t c = 0; c < I; ++c) want += x[row * I + c] * weight.value[line * I + c];
        expect("linear", kernels.name, out[i], want, 1e-5 * std::sqrt(double(I)));
    }
}

void check_norm(const Kernels& kernels, int64_t rows, int64_t width, bool changed) {
    Dice dice;
    const Array<float> x = dice.numbers(rows * width), change = dice.numbers(rows * width);
    const Array<float> weight = dice.numbers(rows * width);
    Array<float> scratch(2 * width), sum(rows * width), out(rows * width);
    kernels.norm_rows[0]({x.data(), changed ? change.data() : nullptr, weight.data(), 0.01f, rows, rows, width,
                          scratch.data(), sum.data(), out.data()});
    const auto total = [&](int64_t i) { return x[i] + (changed ? change[i] : 0.0f); };
    for (int64_t i = 0; i < out.size(); ++i) {
        double squares = 0;
        for (int64_t c = 0; c < width; ++c) squares += std::pow(double(total(i / width * width + c)), 2);
        expect("norm", kernels.name, out[i], weight[i] * total(i) / std::sqrt(squares / width + 0.01), 1e-5);
        if (changed) expect("sum", kernels.name, sum[i], total(i), 0);
    }
}

void check_placing(const Kernels& kernels, int64_t width) {
    Dice dice;
    const int64_t heads = 5, queries = 3, tokens = 2, half = width / 2;
    const Array<float> x = dice.numbers(tokens * heads * width), bias = dice.numbers(heads * width);
    const Array<float> cos = dice.numbers(tokens * width), sin = dice.numbers(tokens * width);
    Array<float> scratch(2 * width), q(tokens * queries * width), k(tokens * width), v(tokens * width);
    kernels.place_heads[0]({x.data(), bias.data(), nullptr, 0, cos.data(), sin.data(), tokens, heads, queries, width,
                            false, scratch.data(), q.data(), k.data(), v.data()});
    const auto number = [&](int64_t t, int64_t h, int64_t c) {
        return double(x[(t * heads + h) * width + c]) + bias[h * width + c];
    };
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t c = 0; c < width; ++c) {
            for (int64_t h = 0; h < 4; ++h) {
                const double other = c < half ? -number(t, h, c + half) : number(t, h, c - half);
                const float got = h < 3 ? q[(t * queries + h) * width + c] : k[t * width + c];
                const int64_t at = t * width + c;
                expect("rotation", kernels.name, got, number(t, h, c) * cos[at] + other * sin[at], 1e-5);
            }
            expect("value", kernels.name, v[t * width + c], number(t, 4, c), 1e-6);
        }
}

void check_swiglu(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> x = dice.numbers(rows * 2 * width);
    Array<float> scratch(2 * width), out(rows * width);
    kernels.swiglu[0]({x.data(), rows, width, scratch.data(), out.data()});
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t at = i / width * 2 * width + i % width;
        const double gate = x[at], up = x[at + width];
        expect("gated unit", kernels.name, out[i], gate / (1 + std::exp(-gate)) * up, 1e-5);
    }
}

// bfloat16: each number is its own sum with zero, and of NaN there remains NaN.
void check_rounding(const Kernels& kernels) {
    const int64_t width = 1 << 16;
    Array<uint16_t> x(width), zero(width), sum(width), out(width);
    for (int64_t i = 0; i < width; ++i) x[i] = uint16_t(i), zero[i] = 0;
    Array<float> weight(width), scratch(2 * width);
    for (int64_t i = 0; i < width; ++i) weight[i] = 1;
    kernels.norm_rows[1]({x.data(), zero.data(), weight.data(), 0.01f, 1, 1, width, scratch.data(), sum.data(), out.data()});
    for (int64_t i = 0; i < width; ++i) {
        const bool nan = (i & 0x7f80) == 0x7f80 && (i & 0x7f);
        expect("bfloat16", kernels.name, nan ? (sum[i] & 0x7fff) > 0x7f80 : sum[i] == i % (1 << 16) || i == 0x8000, 1, 0);
    }
}

void check_merge(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> a = dice.numbers(rows * width), b = dice.numbers(rows * width);
    Array<float> a_lse = dice.numbers(rows);
    const Array<float> b_lse = dice.numbers(rows);
    a_lse[0] = -INFINITY;
    Array<float> out(rows * width), lse(rows);
    kernels.merge({a.data(), a_lse.data()}, {b.data(), b_lse.data()}, rows, width, out.data(), lse.data());
    for (int64_t i = 0; i < out.size(); ++i) {
        const double weight_a = std::exp(double(a_lse[i / width])), weight_b = std::exp(double(b_lse[i / width]));
        expect("merge", kernels.name, out[i], (a[i] * weight_a + b[i] * weight_b) / (weight_a + weight_b), 1e-5);
        expect("merged lse", kernels.name, lse[i / width], std::log(weight_a + weight_b), 1e-5);
    }
}

void check_scouts(const Kernels& kernels, int64_t rows, int64_t width) {
    Dice dice;
    const Array<float> q = dice.numbers(rows * width), scout = dice.numbers(rows * width),
                       mean_key = dice.numbers(rows * width), far = dice.numbers(rows), near = dice.numbers(rows);
    Array<float> lse(rows), scout_error(1);
    kernels.correct(q.data(), scout.data(), mean_key.data(), 0.3f, rows, width, far.data(), lse.data());
    kernels.scout_error(q.data(), scout.data(), far.data(), near.data(), rows, width, scout_error.data());
    double most = 0;
    for (int64_t r = 0; r < rows; ++r) {
        double shift = 0, error = 0, size = 0;
        for (int64_t c = r * width; c < (r + 1) * width; ++c) {
            const double off = double(q[c]) - scout[c];
            shift += off * mean_key[c], error += off * off, size += double(q[c]) * q[c];
        }
        expect("corrected lse", kernels.name, lse[r], far[r] + 0.3 * shift, 1e-4);
        most = std::max(most, std::sqrt(error / size) / (1 + std::exp(double(near[r]) - far[r])));
    }
    expect("scout_error", kernels.name, scout_error[0], most, 1e-5);
}

}  // namespace

void test_linear(const Kernels& kernels, WorkerThreads& workers) {
    for (const DType dtype : kEveryDType) {
        check_linear(kernels, workers, 1, 1, 64, 48, dtype);
        check_linear(kernels, workers, 1, 7, 33, 17, dtype);
        check_linear(kernels, workers, 3, 1, 24, 5, dtype);
        check_linear(kernels, workers, 1, 4, 7, 530, dtype);
        check_linear(kernels, workers, 1, 2, 600, 700, dtype);
    }
}

void test_rows(const Kernels& kernels) {
    for (const int64_t width : {2, 6, 16, 34, 64, 100}) {
        for (const bool changed : {false, true}) check_norm(kernels, 3, width, changed);
        check_placing(kernels, width);
        check_swiglu(kernels, 3, width / 2);
    }
    check_rounding(kernels);
}

void test_merging(const Kernels& kernels) {
    for (const int64_t width : {1, 7, 16, 33, 80})
        for (const int64_t rows : {1, 5}) check_merge(kernels, rows, width), check_scouts(kernels, rows, width);
}

void test_reading(WorkerThreads& workers) {
    for (const int64_t words : {0, 32, 96, 131072 + 32}) {
        Array<uint64_t> data(words);
        uint64_t want = 0;
        for (int64_t i = 0; i < words; ++i) want += data[i] = uint64_t(i) * 0x9e3779b97f4a7c15u;
        std::atomic<uint64_t> sum{0};
        finish(workers, make_read_work(*supported_kernels().back(), data.data(), words * 8, sum, workers.count()));
        if (sum != want) fail("sum of words", "any", double(sum), double(want));
    }
}

}  // namespace testing
