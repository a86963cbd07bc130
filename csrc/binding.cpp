// The extension's Python face. Arguments are plain integers and addresses, already checked by kernels/cpu.py;
// only what needs a walk over the tables is checked below.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "binding.h"
#include "dispatch.h"
#include "sift.h"

using namespace scout;

namespace {

// A submitted job. Owns the tensors it reads and writes, and so cannot end before the job does.
class Handle {
  public:
    Handle(std::shared_ptr<Job> job, nb::object tensors) : job_(std::move(job)), tensors_(std::move(tensors)) {}
    Handle(const Handle&) = delete;
    Handle& operator=(const Handle&) = delete;
    ~Handle() {
        if (!job_->done()) wait();
    }

    void wait() {
        const auto start = Job::Clock::now();
        {
            nb::gil_scoped_release released;
            job_->wait();
        }
        waited_s_ = std::chrono::duration<double>(Job::Clock::now() - start).count();
    }

    double ran_s() const { return job_->ran_s(); }
    double started_s() const { return job_->started_s(); }
    double waited_s() const { return waited_s_; }

  private:
    std::shared_ptr<Job> job_;
    nb::object tensors_;
    double waited_s_ = 0;
};

class Workers {
  public:
    Workers(int threads, const std::string& isa, double delay_s)
        : kernels_(find_kernels(isa)), pool_(threads, delay_s) {}

    // For the arguments see partial_call.   helped: the caller will wait at once.
    std::unique_ptr<Handle> partial(const std::array<uint64_t, 10>& pointers, const std::array<int64_t, 8>& sizes,
                                    const std::array<int64_t, 12>& strides, float scale, bool helped,
                                    nb::object tensors) {
        const PartialCall call = partial_call(pointers, sizes, strides, scale);
        std::shared_ptr<Job> job;
        {
            nb::gil_scoped_release released;
            job = pool_.submit(plan_partial(kernels_, call, pool_.threads()), helped);
        }
        return std::make_unique<Handle>(std::move(job), std::move(tensors));
    }

    // For the arguments see partial_call.   tensors: kept by the result, as these workers are.
    std::unique_ptr<BoundHandover> handover(const std::array<uint64_t, 10>& pointers,
                                            const std::array<int64_t, 8>& sizes,
                                            const std::array<int64_t, 12>& strides, float scale, double timeout_s,
                                            nb::object /*tensors*/) {
        return std::make_unique<BoundHandover>(kernels_, pool_, partial_call(pointers, sizes, strides, scale),
                                               timeout_s);
    }

    // pointers: q, digests, pages, out.   sizes: B, H, G, D, N, S.   strides: digest page, digest head, pages b.
    void scores(const std::array<uint64_t, 4>& pointers, const std::array<int64_t, 6>& sizes,
                const std::array<int64_t, 3>& strides) {
        const auto& [q, digests, pages, out] = pointers;
        const auto& [B, H, G, D, N, S] = sizes;
        const ScoreCall call{pointer<float>(q), B, H, G, D, N, S, {pointer<int32_t>(pages), strides[2], 0},
                             pointer<float>(out)};
        const DigestLayer layer{pointer<float>(digests), strides[0], strides[1]};
        pool_.submit(plan_scores(kernels_, call, layer, pool_.threads()), true)->wait();
    }

    // pointers: q, codes, bounds, pages, out.   sizes: B, H, G, D, N, S, P.
    // strides: codes page, codes head, bounds page, bounds head, pages b.
    void code_scores(const std::array<uint64_t, 5>& pointers, const std::array<int64_t, 7>& sizes,
                     const std::array<int64_t, 5>& strides) {
        const auto& [q, codes, bounds, pages, out] = pointers;
        const auto& [B, H, G, D, N, S, P] = sizes;
        const auto& s = strides;
        const ScoreCall call{pointer<float>(q), B, H, G, D, N, S, {pointer<int32_t>(pages), s[4], 0},
                             pointer<float>(out)};
        const CodeLayer layer{pointer<uint8_t>(codes), pointer<uint16_t>(bounds), s[0], s[1], s[2], s[3], P};
        pool_.submit(plan_scores(kernels_, call, layer, pool_.threads()), true)->wait();
    }

    // pointers: scores, closed, wishes, blocks, their wishes.   sizes: B, H, G, N, first and last blocks that are always chosen, count.
    void rank(const std::array<uint64_t, 5>& pointers, const std::array<int64_t, 7>& sizes, bool largest) {
        const auto& [scores, closed, wishes, blocks, top_wishes] = pointers;
        const auto& [B, H, G, N, sink, recent, count] = sizes;
        const RankCall call{pointer<float>(scores), B, H, G, N, pointer<int64_t>(closed), sink, recent, count, largest,
                            pointer<float>(wishes), pointer<int64_t>(blocks), pointer<float>(top_wishes)};
        pool_.submit(plan_rank(kernels_, call, pool_.threads()), true)->wait();
    }

    // pointers: blocks, wishes, closed, slots, asked, all, least, valid, absent, counts.
    // sizes: B, H, N, width, none, always.
    void sift(const std::array<uint64_t, 10>& pointers, const std::array<int64_t, 6>& sizes) {
        const auto& [blocks, wishes, closed, slots, asked, all, least, valid, absent, counts] = pointers;
        const auto& [B, H, N, width, none, always] = sizes;
        scout::sift({B, H, N, pointer<int64_t>(blocks), pointer<float>(wishes), pointer<int64_t>(closed),
                     pointer<int64_t>(slots), width, none, pointer<uint8_t>(asked), pointer<uint8_t>(all),
                     pointer<float>(least), always, pointer<uint8_t>(valid), pointer<uint8_t>(absent),
                     pointer<int64_t>(counts)});
    }

    // pointers: wishes, asked, interest.   sizes: B, H, W, width.
    void blend(const std::array<uint64_t, 3>& pointers, const std::array<int64_t, 4>& sizes, float kept) {
        const auto& [wishes, asked, interest] = pointers;
        const auto& [B, H, W, width] = sizes;
        scout::blend({B, H, W, width, pointer<float>(wishes), pointer<uint8_t>(asked), kept, pointer<float>(interest)});
    }

    // pointers: blocks, absent, wishes, ahead, served, doubt, asked, spoilt, late, counts.   sizes: B, H, N.
    void late(const std::array<uint64_t, 10>& pointers, const std::array<int64_t, 3>& sizes, float limit) {
        const auto& [blocks, absent, wishes, ahead, served, doubt, asked, spoilt, late, counts] = pointers;
        const auto& [B, H, N] = sizes;
        find_late({B, H, N, pointer<int64_t>(blocks), pointer<uint8_t>(absent), pointer<float>(wishes),
                   pointer<int64_t>(ahead), pointer<uint8_t>(served), pointer<float>(doubt), pointer<uint8_t>(asked),
                   limit, pointer<uint8_t>(spoilt), pointer<uint8_t>(late), pointer<int64_t>(counts)});
    }

    // pointers: x, weight, out.   sizes: M, B, I, O, dtype of the weights.   matrix: elements between two matrices.
    void linear(const std::array<uint64_t, 3>& pointers, const std::array<int64_t, 5>& sizes, int64_t matrix) {
        const auto& [x, weight, out] = pointers;
        const auto& [M, B, I, O, dtype] = sizes;
        const LinearCall call{pointer<float>(x), pointer<char>(weight), matrix, M, B, I, O, static_cast<DType>(dtype),
                              pointer<float>(out)};
        pool_.submit(plan_linear(kernels_, call, pool_.threads()), true)->wait();
    }

    // pointers: out and lse of both, out, lse.   sizes: rows, width.
    void merge(const std::array<uint64_t, 6>& pointers, const std::array<int64_t, 2>& sizes) {
        const auto& [a_out, a_lse, b_out, b_lse, out, lse] = pointers;
        kernels_.merge({pointer<float>(a_out), pointer<float>(a_lse)}, {pointer<float>(b_out), pointer<float>(b_lse)},
                       sizes[0], sizes[1], pointer<float>(out), pointer<float>(lse));
    }

    // pointers: q, scout, mean key, lse, out.   sizes: rows, width.
    void correct(const std::array<uint64_t, 5>& pointers, const std::array<int64_t, 2>& sizes, float scale) {
        const auto& [q, scout, mean_key, lse, out] = pointers;
        kernels_.correct(pointer<float>(q), pointer<float>(scout), pointer<float>(mean_key), scale, sizes[0], sizes[1],
                         pointer<float>(lse), pointer<float>(out));
    }

    // pointers: q, scout, lse of the far and the near part, out.   sizes: KV heads of all sequences, G, D.
    void doubt(const std::array<uint64_t, 5>& pointers, const std::array<int64_t, 3>& sizes) {
        const auto& [q, scout, far, near, out] = pointers;
        const auto& [heads, G, D] = sizes;
        for (int64_t h = 0; h < heads; ++h)
            kernels_.doubt(pointer<float>(q) + h * G * D, pointer<float>(scout) + h * G * D, pointer<float>(far) + h * G,
                           pointer<float>(near) + h * G, G, D, pointer<float>(out) + h);
    }

    // pointers: x, weight, out.   sizes: how often the weight's rows repeat, its rows, their width.
    void rms_norm(const std::array<uint64_t, 3>& pointers, const std::array<int64_t, 3>& sizes, float eps) {
        const auto& [x, weight, out] = pointers;
        const auto& [T, rows, width] = sizes;
        for (int64_t at = 0; at < T * rows * width; at += rows * width)
            kernels_.rms_norm(pointer<float>(x) + at, pointer<float>(weight), eps, rows, width,
                              pointer<float>(out) + at);
    }

    // pointers: x, cos, sin, out.   sizes: T, heads, D.
    void rotate(const std::array<uint64_t, 4>& pointers, const std::array<int64_t, 3>& sizes) {
        const auto& [x, cos, sin, out] = pointers;
        const auto& [T, heads, D] = sizes;
        for (int64_t t = 0; t < T; ++t)
            kernels_.rotate(pointer<float>(x) + t * heads * D, pointer<float>(cos) + t * D, pointer<float>(sin) + t * D,
                            heads, D, pointer<float>(out) + t * heads * D);
    }

    // pointers: gate and up, out.   sizes: T, I.
    void swiglu(const std::array<uint64_t, 2>& pointers, const std::array<int64_t, 2>& sizes) {
        kernels_.swiglu(pointer<float>(pointers[0]), sizes[0], sizes[1], pointer<float>(pointers[1]));
    }

    // With the best instruction set, whatever the others are to use: it is what the machine can read.
    uint64_t read(uint64_t data, int64_t bytes) {
        std::atomic<uint64_t> sum{0};
        const Kernels& best = *supported_kernels().back();
        pool_.submit(plan_read(best, pointer<char>(data), bytes, sum, pool_.threads()), true)->wait();
        return sum;
    }

    void close() { pool_.close(); }
    int threads() const { return pool_.threads(); }
    std::string isa() const { return kernels_.name; }

  private:
    const Kernels& kernels_;
    Pool pool_;
};

std::vector<std::string> isa_levels() {
    std::vector<std::string> names;
    for (const Kernels* kernels : supported_kernels()) names.emplace_back(kernels->name);
    return names;
}

// What is refused is a KernelError.
void translate(const std::exception_ptr& thrown, void* kernel_error) {
    try {
        std::rethrow_exception(thrown);
    } catch (const std::logic_error& error) {
        PyErr_SetString(static_cast<PyObject*>(kernel_error), error.what());
    }
}

}  // namespace

NB_MODULE(_native, m) {
    nb::object kernel_error = nb::module_::import_("scoutattention.errors").attr("KernelError");
    nb::register_exception_translator(translate, kernel_error.release().ptr());  // for good, as the translator is
    m.def("isa_levels", &isa_levels, "The instruction sets this CPU and build support, worst to best.");
    nb::class_<Handle>(m, "Handle")
        .def("wait", &Handle::wait)
        .def_prop_ro("ran_s", &Handle::ran_s)
        .def_prop_ro("started_s", &Handle::started_s)
        .def_prop_ro("waited_s", &Handle::waited_s);
    bind_handover(m);
    nb::class_<Workers>(m, "Workers")
        .def(nb::init<int, const std::string&, double>())
        .def("partial", &Workers::partial)
        .def("handover", &Workers::handover, nb::keep_alive<0, 1>(), nb::keep_alive<0, 7>())
        .def("scores", &Workers::scores, nb::call_guard<nb::gil_scoped_release>())
        .def("code_scores", &Workers::code_scores, nb::call_guard<nb::gil_scoped_release>())
        .def("rank", &Workers::rank, nb::call_guard<nb::gil_scoped_release>())
        .def("sift", &Workers::sift)
        .def("blend", &Workers::blend)
        .def("late", &Workers::late)
        .def("linear", &Workers::linear, nb::call_guard<nb::gil_scoped_release>())
        .def("merge", &Workers::merge)
        .def("correct", &Workers::correct)
        .def("doubt", &Workers::doubt)
        .def("rms_norm", &Workers::rms_norm)
        .def("rotate", &Workers::rotate)
        .def("swiglu", &Workers::swiglu)
        .def("read", &Workers::read, nb::call_guard<nb::gil_scoped_release>())
        .def("close", &Workers::close, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("threads", &Workers::threads)
        .def_prop_ro("isa", &Workers::isa);
}
