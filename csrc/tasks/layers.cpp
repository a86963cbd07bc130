// What a decoder layer computes of few rows before its attention, and after it: one work each.
#include "runtime/stages.h"
#include "tasks/common.h"
#include "tasks/linear.h"

namespace scout {
namespace {

class LayerWork : public StagedWork {
  protected:
    LayerWork(const Kernels& kernels, int64_t rows) : kernels_(kernels), rows_(rows) {}

    void add_product(LinearTasks& tasks) {
        add_stage(tasks.count(), tasks.threads(), [&tasks](int64_t number) { tasks.run(number); });
    }
    // A stage of rows, one by one; `then` packs them for a product.
    void add_rows(Task run, LinearTasks* next) {
        add_stage(rows_, 1, std::move(run), next ? [next] { next->pack(); } : std::function<void()>());
    }

    const Kernels& kernels_;
    const int64_t rows_;
};

class HeadsWork final : public LayerWork {
  public:
    HeadsWork(const Kernels& kernels, const HeadsCall& call, int threads)
        : LayerWork(kernels, call.product.B), call_(call), projected_(new float[call.product.B * call.product.O]),
          product_(kernels, into(call.product, projected_.get()), threads) {
        product_.pack();
        add_product(product_);
        add_rows([this](int64_t row) { place(row); }, nullptr);
    }

  private:
    static LinearCall into(LinearCall product, float* out) { return product.out = out, product; }

    void place(int64_t row) const {
        PlaceRun run = call_.place;
        const int64_t D = run.dim, others = (run.heads - run.queries) / 2 * D;
        const auto of = [&](void* out, int64_t width) { return static_cast<float*>(out) + row * width; };
        run.x = projected_.get() + row * call_.product.O;
        run.cos += row * D, run.sin += row * D, run.tokens = 1, run.scratch = scratch_memory(2 * D);
        run.q = of(run.q, run.queries * D), run.k = of(run.k, others), run.v = of(run.v, others);
        kernels_.place_heads[0](run);
    }

    const HeadsCall call_;
    const std::unique_ptr<float[]> projected_;
    LinearTasks product_;
};

class LayerEndWork final : public LayerWork {
  public:
    LayerEndWork(const Kernels& kernels, const LayerEndCall& call, int threads)
        : LayerWork(kernels, call.B), call_(call), memory_(new float[3 * call.B * (call.E + call.I)]),
          output_(kernels, {call.attended, 1, call.B, call.A, call.E, call.output, change()}, threads),
          gate_up_(kernels, {normed(), 1, call.B, call.E, 2 * call.I, call.gate_up, gates()}, threads),
          down_(kernels, {gated(), 1, call.B, call.I, call.E, call.down, change()}, threads) {
        output_.pack();
        add_product(output_);
        add_rows([this](int64_t row) { norm(row, call_.x, call_.post_norm, sum(), normed()); }, &gate_up_);
        add_product(gate_up_);
        add_rows([this](int64_t row) { gate(row); }, &down_);
        add_product(down_);
        add_rows([this](int64_t row) { norm(row, sum(), call_.next_norm, call_.sum, call_.out); }, nullptr);
    }

  private:
    float* change() const { return memory_.get(); }
    float* sum() const { return change() + call_.B * call_.E; }
    float* normed() const { return sum() + call_.B * call_.E; }
    float* gated() const { return normed() + call_.B * call_.E; }
    float* gates() const { return gated() + call_.B * call_.I; }

    void norm(int64_t row, const float* x, const float* weight, float* total, float* out) const {
        const int64_t E = call_.E, at = row * E;
        kernels_.norm_rows[0]({x + at, change() + at, weight, call_.eps, 1, 1, E, scratch_memory(2 * E), total + at,
                               out + at});
    }
    void gate(int64_t row) const {
        const int64_t I = call_.I;
        kernels_.swiglu[0]({gates() + 2 * row * I, 1, I, scratch_memory(2 * I), gated() + row * I});
    }

    const LayerEndCall call_;
    const std::unique_ptr<float[]> memory_;
    LinearTasks output_, gate_up_, down_;
};

}  // namespace

std::unique_ptr<Work> make_heads_work(const Kernels& kernels, const HeadsCall& call, int threads) {
    return std::make_unique<HeadsWork>(kernels, call, threads);
}

std::unique_ptr<Work> make_layer_end_work(const Kernels& kernels, const LayerEndCall& call, int threads) {
    return std::make_unique<LayerEndWork>(kernels, call, threads);
}

}  // namespace scout
