// The blocks that query heads want most by the 2-bit keys of their pages: products with a basis, scores, and a choice.
#include "runtime/stages.h"
#include "tasks/common.h"

namespace scout {
namespace {

class TopByCodesWork final : public StagedWork {
  public:
    TopByCodesWork(const Kernels& kernels, const TopByCodesCall& call, int threads) : scale_(call.scale) {
        const ScoreCall& score = call.score;
        const TopBlocksCall& top = call.top;
        const int64_t rows = score.B * score.H * score.G;
        q_.reset(new float[rows * score.D]), scores_.reset(new float[rows * score.N]);
        if (call.basis.parts.empty()) {
            std::copy(score.q, score.q + rows * score.D, q_.get());
            scale(rows * score.D);
        } else {
            LinearCall basis = call.basis;
            basis.out = q_.get();
            add_stage(make_linear_work(kernels, basis, threads), [this, count = rows * score.D] { scale(count); });
        }
        ScoreCall scored = score;
        scored.q = q_.get(), scored.out = scores_.get();
        TopBlocksCall chosen = top;
        chosen.scores = scores_.get();
        add_stage(make_score_work(kernels, scored, call.layer, threads));
        add_stage(make_top_blocks_work(kernels, chosen, threads));
    }

  private:
    void scale(int64_t count) {
        for (int64_t i = 0; i < count; ++i) q_[i] *= scale_;
    }

    const float scale_;
    std::unique_ptr<float[]> q_, scores_;
};

}  // namespace

std::unique_ptr<Work> make_top_by_codes_work(const Kernels& kernels, const TopByCodesCall& call, int threads) {
    return std::make_unique<TopByCodesWork>(kernels, call, threads);
}

}  // namespace scout
