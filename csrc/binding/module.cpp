// The extension module scoutattention._native.
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "binding/workers.h"
#include "instruction_sets/dispatch.h"

namespace {

using namespace scout;

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

void bind_workers(nb::module_& m) {
    using nb::literals::operator""_a;
    nb::class_<Workers>(m, "Workers")
        .def(nb::init<int, const std::string&, double>(), "threads"_a, "isa"_a, "delay_s"_a)
        .def("partial", &Workers::partial, "q"_a, "layer"_a, "blocks"_a, "scale"_a, "with_mean_key"_a, "helped"_a)
        .def("handover", &Workers::handover, "q"_a, "layer"_a, "blocks"_a, "scale"_a, "result"_a, "flags"_a,
             "thread"_a, nb::keep_alive<0, 1>(), nb::keep_alive<0, 8>())
        .def("score_min_max", &Workers::score_min_max, "q"_a, "digests"_a, "pages"_a, "closed"_a)
        .def("score_key_codes", &Workers::score_key_codes, "q"_a, "codes"_a, "bounds"_a, "pages"_a, "closed"_a)
        .def("write_key_codes", &Workers::write_key_codes, "request"_a)
        .def("top_blocks", &Workers::top_blocks, "scores"_a, "closed"_a, "count"_a, "always"_a, "largest"_a)
        .def("top_by_key_codes", &Workers::top_by_key_codes, "request"_a)
        .def("split_choice", &Workers::split_choice, "request"_a)
        .def("update_interest", &Workers::update_interest, "interest"_a, "blocks"_a, "wishes"_a, "rows"_a,
             "kept"_a)
        .def("find_late", &Workers::find_late, "request"_a)
        .def("page_list", &Workers::page_list, "table"_a, "blocks"_a, "wanted"_a, "size"_a)
        .def("near_list", &Workers::near_list, "request"_a)
        .def("append", &Workers::append, "rows"_a, "pool"_a, "entry"_a, "fill"_a)
        .def("merge", &Workers::merge, "a"_a, "b"_a)
        .def("corrected_lse", &Workers::corrected_lse, "far"_a, "q"_a, "q_hat"_a, "scale"_a)
        .def("scout_error", &Workers::scout_error, "far"_a, "near"_a, "q"_a, "q_hat"_a)
        .def("causal", &Workers::causal, "q"_a, "k"_a, "v"_a, "scale"_a, "out"_a)
        .def("linear", &Workers::linear, "x"_a, "weight"_a)
        .def("linear_stored", &Workers::linear_stored, "x"_a, "parts"_a, "many"_a)
        .def("expand", &Workers::expand, "data"_a, "kind"_a, "out"_a)
        .def("project", &Workers::project, "x"_a, "basis"_a)
        .def("rms_norm", &Workers::rms_norm, "x"_a, "weight"_a, "eps"_a)
        .def("add_norm", &Workers::add_norm, "x"_a, "change"_a, "weight"_a, "eps"_a)
        .def("place_heads", &Workers::place_heads, "x"_a, "how"_a)
        .def("swiglu", &Workers::swiglu, "x"_a)
        .def("project_heads", &Workers::project_heads, "x"_a, "weight"_a, "how"_a)
        .def("end_layer", &Workers::end_layer, "x"_a, "attended"_a, "by"_a)
        .def("read", &Workers::read, "data"_a)
        .def("set_recording", &Workers::set_recording, "on"_a)
        .def("take_tasks", &Workers::take_tasks)
        .def("close", &Workers::close, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("has_many_rows", &Workers::has_many_rows)
        .def_prop_ro("threads", &Workers::threads)
        .def_prop_ro("isa", &Workers::isa);
}

}  // namespace

NB_MODULE(_native, m) {
    nb::object kernel_error = nb::module_::import_("scoutattention.errors").attr("KernelError");
    nb::register_exception_translator(translate, kernel_error.release().ptr());  // held for good, as the translator is
    m.def("isa_levels", &isa_levels, "The instruction sets this CPU and build support, worst to best.");
    bind_partial(m);
    bind_workers(m);
}
