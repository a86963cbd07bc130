// Partial attention, scores of blocks, and the top blocks.
#include <algorithm>

#include "testing.h"

namespace testing {
namespace {

struct Shape {
    int64_t B, H, G, D, P, S, N;
};

// Head dims and lengths around vectors, head counts around tiles, one list that is split over tasks.
constexpr Shape kShapes[] = {
    {1, 1, 1, 64, 32, 5, 4}, {2, 2, 3, 7, 5, 6, 3},    {1, 2, 7, 80, 33, 4, 4},  {1, 1, 5, 24, 1, 9, 9},
    {2, 1, 4, 128, 70, 3, 2}, {1, 2, 2, 33, 16, 4, 1}, {2, 2, 3, 64, 32, 40, 40}, {1, 1, 3, 16, 8, 3, 0},
};

// The far keys of one query head: log-sum-exp, mean value and mean key.
struct Answer {
    double lse;
    std::vector<double> out, mean_key;
};

Answer attend(const PartialCall& call, const Stored& k, const Stored& v, int64_t row, int64_t g) {
    const int64_t D = call.D, h = row % call.H, P = call.layer.positions;
    Answer answer{-INFINITY, std::vector<double>(D), std::vector<double>(D)};
    const float* q = call.q + (row * call.G + g) * D;
    const int32_t *index = call.index.row(row / call.H, h), *length = call.length.row(row / call.H, h);
    double sum = 0;
    for (int64_t n = 0; n < call.N; ++n)
        for (int64_t p = 0; p < length[n]; ++p) {
            const int64_t at = ((int64_t(index[n]) * call.H + h) * P + p) * D;
            double score = 0;
            for (int64_t d = 0; d < D; ++d) score += q[d] * k.value[at + d];
            const double weight = std::exp(score * call.scale);
            sum += weight;
            for (int64_t d = 0; d < D; ++d) {
                answer.out[d] += weight * v.value[at + d];
                answer.mean_key[d] += weight * k.value[at + d];
            }
        }
    if (sum == 0) return answer;
    answer.lse = std::log(sum);
    for (int64_t d = 0; d < D; ++d) answer.out[d] /= sum, answer.mean_key[d] /= sum;
    return answer;
}

void check_partial(const Kernels& kernels, WorkerThreads& workers, const Shape& s, DType dtype, bool with_mean_key) {
    Dice dice;
    const int64_t rows = s.B * s.H;
    const Array<float> q = dice.numbers(rows * s.G * s.D);
    const Stored k(dtype, s.S * s.H * s.P * s.D, dice), v(dtype, s.S * s.H * s.P * s.D, dice);
    const Array<int32_t> index = dice.indices(rows * s.N, s.S), length = dice.indices(rows * s.N, s.P + 1);
    Array<float> out(q.size()), lse(rows * s.G), mean_key(with_mean_key ? q.size() : 0);
    PartialCall call{};
    call.q = q.data();
    call.B = s.B, call.H = s.H, call.G = s.G, call.D = s.D, call.N = s.N;
    call.scale = 0.2f;
    call.layer.k = k.bytes.data(), call.layer.v = v.bytes.data();
    call.layer.k_page = call.layer.v_page = s.H * s.P * s.D, call.layer.k_head = call.layer.v_head = s.P * s.D;
    call.layer.pages = s.S, call.layer.positions = s.P, call.layer.dtype = dtype;
    call.index = {index.data(), s.H * s.N, s.N}, call.length = {length.data(), s.H * s.N, s.N};
    call.out = out.data(), call.lse = lse.data(), call.mean_key = with_mean_key ? mean_key.data() : nullptr;
    finish(workers, make_partial_work(kernels, call, workers.count()));
    for (int64_t row = 0; row < rows * s.G; ++row) {
        const Answer want = attend(call, k, v, row / s.G, row % s.G);
        expect("lse", kernels.name, lse[row], want.lse, 2e-5);
        for (int64_t d = 0; d < s.D; ++d) {
            expect("attention", kernels.name, out[row * s.D + d], want.out[d], 2e-5);
            if (with_mean_key) expect("mean key", kernels.name, mean_key[row * s.D + d], want.mean_key[d], 2e-5);
        }
    }
}

// Pages of each KV head, of which the first sequence is scored whole, and a part of each other.
struct Lists {
    Array<int32_t> pages;
    Array<int64_t> closed;

    Lists(const Shape& s, Dice& dice) : pages(dice.indices(s.B * s.H * s.N, s.S)), closed(s.B) {
        for (int64_t b = 0; b < s.B; ++b) closed[b] = b ? dice.below(s.N + 1) : s.N;
    }
    ScoreCall call(const Shape& s, const Array<float>& q, Array<float>& out) const {
        return {q.data(), s.B, s.H, s.G, s.D, s.N, s.S, {pages.data(), s.H * s.N, s.N}, closed.data(), out.data()};
    }
    // Of score i; -1 where it is not written.
    int64_t page(const Shape& s, int64_t i) const {
        const int64_t row = i / s.N / s.G;
        return i % s.N < closed[row / s.H] ? pages[row * s.N + i % s.N] : -1;
    }
};

void check_digests(const Kernels& kernels, WorkerThreads& workers, const Shape& s) {
    Dice dice;
    const Array<float> q = dice.numbers(s.B * s.H * s.G * s.D), digests = dice.numbers(s.S * s.H * 2 * s.D);
    const Lists lists(s, dice);
    Array<float> out(s.B * s.H * s.G * s.N);
    const ScoreCall call = lists.call(s, q, out);
    const MinMaxLayer layer{digests.data(), s.H * 2 * s.D, 2 * s.D};
    finish(workers, make_score_work(kernels, call, layer, workers.count()));
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = i / s.N, h = row / s.G % s.H, page = lists.page(s, i);
        if (page < 0) continue;
        const float *x = q.data() + row * s.D, *bounds = digests.data() + (page * s.H + h) * 2 * s.D;
        double want = 0;
        for (int64_t d = 0; d < s.D; ++d) want += x[d] * (x[d] > 0 ? bounds[d] : bounds[s.D + d]);
        expect("digest score", kernels.name, out[i], want, 1e-4);
    }
}

// Whole-number queries and equal steps, so that rounding the products to 8 bits changes nothing.
void check_codes(const Kernels& kernels, WorkerThreads& workers, const Shape& s) {
    constexpr uint16_t kStep = 0x1800;  // 1/512 in float16
    Dice dice;
    const int64_t W = code_words(s.D), codes_page = W * s.P * 4;
    Array<float> q(s.B * s.H * s.G * s.D);
    for (int64_t i = 0; i < q.size(); ++i) q[i] = i % s.D ? float(dice.below(255) - 127) : 127;
    Array<uint8_t> codes(s.S * s.H * codes_page);
    for (int64_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(dice.below(256));
    const Stored least(kFloat16, s.S * s.H * s.D, dice);
    Array<uint16_t> bounds(s.S * s.H * 2 * s.D);
    for (int64_t i = 0; i < least.bytes.size() / 2; ++i) {
        std::memcpy(&bounds[i / s.D * 2 * s.D + i % s.D], least.bytes.data() + 2 * i, 2);
        bounds[i / s.D * 2 * s.D + s.D + i % s.D] = kStep;
    }
    const Lists lists(s, dice);
    Array<float> out(s.B * s.H * s.G * s.N);
    const ScoreCall call = lists.call(s, q, out);
    const KeyCodeLayer layer{codes.data(), bounds.data(), s.H * codes_page, codes_page, s.H * 2 * s.D, 2 * s.D, s.D, s.P};
    finish(workers, make_score_work(kernels, call, layer, workers.count()));
    for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t row = i / s.N, h = row / s.G % s.H, page = lists.page(s, i);
        if (page < 0) continue;
        std::vector<double> scores(s.P);
        for (int64_t p = 0; p < s.P; ++p)
            for (int64_t d = 0; d < s.D; ++d) {
                const uint8_t byte = codes[(page * s.H + h) * codes_page + (d / 16 * s.P + p) * 4 + d % 4];
                const double key = least.value[(page * s.H + h) * s.D + d] + (byte >> d % 16 / 4 * 2 & 3) / 512.0;
                scores[p] += q[row * s.D + d] * key;
            }
        const double most = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (const double score : scores) sum += std::exp(score - most);
        expect("code score", kernels.name, out[i], most + std::log(sum), 2e-3);
    }
}

// What is kept of keys is no further from them than half a step, and what float16 and the basis round.
// rows: of the basis, 0 without one.
void check_written_codes(const Kernels& kernels, WorkerThreads& workers, int64_t P, int64_t D, int64_t rows) {
    constexpr int64_t n = 3, H = 2, S = 5, R = 2;
    const int64_t C = rows ? rows : D;
    Dice dice;
    const Array<float> k = dice.numbers(n * H * P * D), basis = dice.numbers(R * H * C * D);
    Array<int64_t> pages(n), which(n);
    for (int64_t i = 0; i < n; ++i) pages[i] = (3 * i + 1) % S, which[i] = i % R;
    const int64_t codes_page = code_words(C) * P * 4;
    Array<uint8_t> codes(S * H * codes_page);
    Array<uint16_t> bounds(S * H * 2 * C);
    WriteCodesCall call{k.data(), n, H, P, D, H * P * D, P * D, D, basis.data(), C, H * C * D, R, nullptr, 1,
                        {codes.data(), bounds.data(), H * codes_page, codes_page, H * 2 * C, 2 * C, C, P},
                        pages.data(), S};
    if (rows) call.which = which.data();
    finish(workers, make_write_codes_work(kernels, call, workers.count()));
    for (int64_t row = 0; row < n * H; ++row) {
        const int64_t i = row / H, h = row % H, digest = pages[i] * H + h;
        for (int64_t d = 0; d < C; ++d) {
            std::vector<double> want(P);
            for (int64_t p = 0; p < P; ++p) {
                const float *key = k.data() + (row * P + p) * D, *line = basis.data() + ((which[i] * H + h) * C + d) * D;
                if (rows) for (int64_t c = 0; c < D; ++c) want[p] += double(key[c]) * line[c];
                else want[p] = key[d];
            }
            const auto [low, high] = std::minmax_element(want.begin(), want.end());
            const double step = (*high - *low) / 3, size = std::max(std::abs(*low), std::abs(*high));
            for (int64_t p = 0; p < P; ++p) {
                const uint8_t byte = codes[digest * codes_page + (d / 16 * P + p) * 4 + d % 4];
                const double kept = *low + (byte >> d % 16 / 4 * 2 & 3) * step;
                if (!(std::abs(kept - want[p]) <= 0.5 * step + size / 256 + 1e-4))
                    fail("a kept key", kernels.name, kept, want[p]);
            }
        }
    }
}

// No two scores are equal, so there is one right order.
void check_top_blocks(const Kernels& kernels, WorkerThreads& workers, int64_t N, int64_t count, bool largest) {
    constexpr int64_t B = 3, H = 2, G = 3;
    Dice dice;
    const Array<float> scores = dice.numbers(B * H * G * N);
    Array<int64_t> closed(B), blocks(B * H * count);
    for (int64_t b = 0; b < B; ++b) closed[b] = N - b * N / 4;
    Array<float> wishes(B * H * N), top_wishes(B * H * count);
    const TopBlocksCall call{scores.data(), B,     H,       G,             N,             closed.data(),    1,
                             2,             count, largest, wishes.data(), blocks.data(), top_wishes.data()};
    finish(workers, make_top_blocks_work(kernels, call, workers.count()));
    for (int64_t row = 0; row < B * H; ++row) {
        const int64_t n = closed[row / H];
        const float* wish = wishes.data() + row * N;
        double sum = 0;
        for (int64_t i = 0; i < N; ++i) sum += wish[i];
        expect("wishes", kernels.name, sum, 1, 1e-5);
        for (int64_t i = row * count; i < (row + 1) * count; ++i)
            expect("wishes of the top blocks", kernels.name, top_wishes[i], wish[blocks[i]], 0);
        const auto place = [&](int64_t i) { return i >= n ? -1 : wish[i] + 2 * (i < 1 || i >= n - 2); };
        for (int64_t i = 1; i < count; ++i) {
            const int64_t one = blocks[row * count + i - 1], next = blocks[row * count + i];
            if (place(one) < place(next)) fail("order of blocks", kernels.name, double(next), double(one));
        }
        for (int64_t i = 0; count && i < N; ++i) {
            const int64_t *first = blocks.data() + row * count, *end = first + count;
            if (place(i) > place(end[-1]) && std::find(first, end, i) == end)
                fail("a top block", kernels.name, -1, double(i));
        }
    }
}

}  // namespace

void test_partial(const Kernels& kernels, WorkerThreads& workers) {
    for (const Shape& shape : kShapes)
        for (const DType dtype : kEveryDType)
            for (const bool with_mean_key : {false, true}) check_partial(kernels, workers, shape, dtype, with_mean_key);
}

void test_scores(const Kernels& kernels, WorkerThreads& workers) {
    for (const Shape& shape : kShapes) check_digests(kernels, workers, shape), check_codes(kernels, workers, shape);
    for (const int64_t P : {1, 7, 16, 32, 37})
        for (const int64_t D : {1, 24, 64, 80})
            for (const int64_t rows : {int64_t{0}, D, D - D / 3}) check_written_codes(kernels, workers, P, D, rows);
}

void test_top_blocks(const Kernels& kernels, WorkerThreads& workers) {
    for (const int64_t N : {4, 15, 16, 33, 300})
        for (const int64_t count : {int64_t(0), N / 2, N})
            for (const bool largest : {false, true}) check_top_blocks(kernels, workers, N, count, largest);
}

}  // namespace testing
