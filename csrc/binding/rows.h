// Rows and matrices as arguments.
#pragma once

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "binding/tensor.h"

namespace scout {

// The named tuples of Python, in the order of their fields.
using HeadPlacingArgument = std::tuple<int64_t, std::optional<Tensor>, std::optional<Tensor>, double,
                                       std::pair<Tensor, Tensor>, bool>;  // reference_rows.HeadPlacing
// The parts of a matrix, one below the other. A part that GGUF stores has the number of its kind there.
using MatrixArgument = std::vector<std::pair<Tensor, std::optional<int>>>;

[[noreturn]] void refuse(const std::string& sentence);  // throws std::invalid_argument

// All throw std::invalid_argument with a sentence that names the tensor.
DType number_dtype(const std::string& name, const Tensor& tensor);
const float* float_rows(const char* name, const Tensor& x);  // contiguous
// Matrices [.., O, I] of one dtype.
LinearPart matrices(const Tensor& weight, DType dtype);
// A matrix of `width` columns as GGUF keeps it: uint8 [lines, bytes of a line], of a kind by its number there.
LinearPart stored_lines(const Tensor& data, int number, int64_t width);

// Lines of a matrix of `width` columns: stored, or contiguous numbers [lines, width].
std::vector<LinearPart> matrix_parts(const char* name, const MatrixArgument& parts, int64_t width);
int64_t lines_of(const std::vector<LinearPart>& parts);
// How heads of tokens [T, heads, D] are placed, without what is read and written.
PlaceRun placing(const HeadPlacingArgument& how, int64_t T, int64_t heads, int64_t D);

}  // namespace scout
